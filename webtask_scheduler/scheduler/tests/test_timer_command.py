"""`manage.py timer`, as an operator types it; and which lines of a crontab it takes over."""

import io
import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command

from webtask_scheduler.scheduler.api import importing
from webtask_scheduler.scheduler.api.reading import read_timer
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer, TimerLabel
from webtask_scheduler.scheduler.rules import crontab
from webtask_scheduler.scheduler.tests.support.cases import each

URL = "http://a.example/hook"
db = pytest.mark.django_db


@pytest.fixture
def run(capsys):
    """Return a function that runs the command and returns what it printed."""

    def run(*words):
        call_command("timer", *words)
        return capsys.readouterr().out

    return run


def refuse(*words):
    """Return what the command refuses with."""
    with pytest.raises(CommandError) as caught:
        call_command("timer", *words)
    return str(caught.value)


# Owners


@db
def test_timer_is_made_for_an_owner_and_found_by_it(run, user, tmp_path):
    made = json.loads(run("create", URL, "--seconds", "60", "--owner", user.email.upper(), "--json"))
    assert Timer.objects.get().owner == user
    run("create", URL, "--seconds", "60")
    assert [one["task_id"] for one in json.loads(run("list", "--owner", user.email, "--json"))["timers"]] == [
        made["task_id"]
    ]
    assert len(json.loads(run("list", "--json"))["timers"]) == 2
    lines = tmp_path / "crontab"
    lines.write_text(f"@daily {URL}\n")
    for words in ([], ["--owner", user.email], ["--owner", user.email]):
        run("import", str(lines), *words)
    assert sorted(Timer.objects.exclude(cron="").values_list("owner", flat=True), key=str) == [user.pk, None]


@db
@each("action", [["create", URL, "--seconds", "1"], ["list"], ["import", "/dev/null"]])
def test_owner_who_is_not_there_is_refused(user, action):
    type(user).objects.update(is_active=False)
    for email in ("nobody@example.com", user.email):
        assert refuse(*action, "--owner", email) == "owner: There is no active user with this e-mail address."
    assert not Timer.objects.exists()


# Creating


CREATED = {
    "seconds": (["--minutes", "1", "--seconds", "5"], {}),
    "delay": (["--delay", "PT90S"], {}),
    "cron": (["--cron", "0 9 * * MON-FRI", "--timezone", "Europe/Berlin"], {"timezone": "Europe/Berlin"}),
    "every": (["--every", "PT10M", "--max-occurrences", "3"], {"every": "PT10M", "max_occurrences": 3}),
    "name and labels": (
        ["--seconds", "5", "--name", "a name", "--label", "a=b", "--label", "c=d=e", "--metadata", "[1]"],
        {"name": "a name", "labels": {"a": "b", "c": "d=e"}, "metadata": [1]},
    ),
    "headers": (
        ["--seconds", "5", "--method", "PUT", "--header", "A: b", "--header", "C:d:e"],
        {"method": "PUT", "headers": {"A": "b", "C": "d:e"}},
    ),
    "text": (
        ["--seconds", "5", "--body", "hello", "--content-type", "text/html"],
        {"body": "hello", "content_type": "text/html"},
    ),
    "empty text": (["--seconds", "5", "--body", ""], {"body": ""}),
    "json": (["--seconds", "5", "--json-body", '{"a": [0]}'], {"body": {"a": [0]}}),
    "false": (["--seconds", "5", "--json-body", "false"], {"body": False}),
    "bytes": (["--seconds", "5", "--body-base64", "AAAA"], {"body_base64": "AAAA"}),
    "answers": (
        ["--seconds", "5", "--follow-redirects", "--success-status", "2xx", "--success-status", "304"],
        {"follow_redirects": True, "success_statuses": ["2xx", 304]},
    ),
    "limits": (
        ["--seconds", "0", "--timeout-seconds", "2.5", "--max-attempts", "3", "--min-seconds", "1"],
        {"timeout_seconds": 2.5, "retry": {"max_attempts": 3, "min_seconds": 1}},
    ),
    "list of delays": (
        ["--seconds", "0", "--backoff", "list", "--delays-seconds", "1", "2.5"],
        {"retry": {"backoff": "list", "delays_seconds": [1, 2.5], "max_attempts": 3}},
    ),
    "missed": (
        ["--seconds", "0", "--on-missed", "skip", "--max-lateness", "PT5M"],
        {"on_missed": "skip", "max_lateness": "PT5M"},
    ),
    "callbacks": (
        ["--seconds", "0", "--callback-url", "http://b.example", "--failure-callback-url", "http://c.example"],
        {"callback_url": "http://b.example", "failure_callback_url": "http://c.example"},
    ),
}


@db
@pytest.mark.parametrize(("words", "fields"), CREATED.values(), ids=CREATED)
def test_creating_takes_what_the_api_takes(run, client, words, fields):
    said = json.loads(run("create", URL, *words, "--json"))
    if "headers" in fields:
        fields = fields | {"headers": dict.fromkeys(fields["headers"], "***")}
    assert said.items() >= ({"web_url": URL, "status": "scheduled"} | fields).items()
    assert client.get(f"/timer/{said['task_id']}").json().items() >= fields.items()


@db
def test_creating_at_an_instant_says_the_id_and_when(run):
    said = run("create", URL, "--due-at", "2030-01-05T09:00:00+01:00")
    timer = Timer.objects.get()
    assert said == f"{timer.pk} is called at 2030-01-05T08:00:00Z\n"
    assert timer.owner is None


REFUSED = {
    "no moment": ([], "seconds: Say when"),
    "two moments": (["--seconds", "1", "--delay", "PT1S"], "delay: Say when in one way only"),
    "cron": (["--cron", "* * *"], "cron: The cron expression has 3 fields"),
    "zone": (["--cron", "@daily", "--timezone", "Mars/Base"], "timezone: "),
    "zone without cron": (["--seconds", "1", "--timezone", "UTC"], "timezone: Only with cron"),
    "duration": (["--delay", "P1M"], "delay: Years and months"),
    "instant without offset": (["--due-at", "2030-01-05T09:00:00"], "due_at: The instant has no offset"),
    "past": (["--due-at", "2020-01-01T00:00:00Z", "--on-missed", "reject"], "due_at: It has passed"),
    "bound without recurrence": (["--seconds", "1", "--ends-at", "2030-01-01T00:00:00Z"], "ends_at: Only with"),
    "header": (["--seconds", "1", "--header", "Host: a"], "headers: The header 'Host'"),
    "header twice": (["--seconds", "1", "--header", "A: b", "--header", "A: c"], "headers: One name is given twice"),
    "header without a colon": (["--seconds", "1", "--header", "A"], "argument --header: 'A' is not a header"),
    "label": (["--seconds", "1", "--label", " =b"], "labels: "),
    "label without a value": (["--seconds", "1", "--label", "b"], "argument --label: 'b' is not key=value"),
    "two bodies": (["--seconds", "1", "--body", "a", "--json-body", "1"], "body: Give either"),
    "two bodies, bytes": (["--seconds", "1", "--body", "a", "--body-base64", "AAAA"], "body_base64: Give either"),
    "no JSON": (["--seconds", "1", "--json-body", "{"], "argument --json-body: this is not JSON"),
    "null": (["--seconds", "1", "--json-body", "null"], "argument --json-body: null says nothing"),
    "body of a GET": (["--seconds", "1", "--method", "GET", "--body", "a"], "body: GET carries no body"),
    "time limit": (["--seconds", "1", "--timeout-seconds", "301"], "timeout_seconds: "),
    "no number": (["--seconds", "1", "--timeout-seconds", "nan"], "timeout_seconds: A number is required"),
    "attempts": (["--seconds", "1", "--max-attempts", "0"], "retry.max_attempts: Must be 1 or more"),
    "lateness alone": (["--seconds", "1", "--max-lateness", "PT1S"], 'max_lateness: Only with "on_missed"'),
    "status": (["--seconds", "1", "--success-status", "6xx"], "success_statuses: "),
    "method": (["--seconds", "1", "--method", "BREW"], "argument --method: invalid choice"),
    "seconds": (["--seconds", "x"], "argument --seconds: invalid int value"),
}


@db
@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named_and_nothing_is_stored(words, said):
    assert said in refuse("create", URL, *words)
    assert not Timer.objects.exists()


@db
def test_a_url_that_cannot_be_called_is_refused():
    assert "web_url: The URL must begin with http" in refuse("create", "ftp://a.example", "--seconds", "1")


# Reading


@db
def test_getting_shows_every_field_in_columns_or_as_json(run, client, make_timer):
    timer = make_timer(web_url=URL, name="é")
    lines = run("get", str(timer.pk)).splitlines()
    assert f"task_id               {timer.pk}" in lines
    assert "finished_at           null" in lines
    assert "name                  é" in lines
    assert json.loads(run("get", str(timer.pk), "--json")) == client.get(f"/timer/{timer.pk}").json()


@db
def test_getting_shows_the_attempts(run, make_timer, delivery_of):
    timer = make_timer(due_at=datetime(2026, 1, 5, tzinfo=UTC))
    meant_for = delivery_of(timer).due_at
    Delivery.objects.update(attempts=1, started_at=meant_for)
    Attempt.objects.create(
        delivery=delivery_of(timer), number=1, meant_for=meant_for, started_at=meant_for, status_code=500, message="No."
    )
    assert "attempt 1  2026-01-05T00:00:00Z  500  No." in run("get", str(timer.pk))


@db
def test_an_unknown_id_is_named():
    unknown = str(uuid.uuid4())
    for words in (["get", unknown], ["cancel", unknown], ["replay", unknown]):
        assert f"id: There is no timer {unknown}." in refuse(*words)
    assert "'x' is not an id" in refuse("get", "x")


@db
def test_listing_shows_a_table_the_latest_first(run, make_timer):
    make_timer(web_url=URL + "/" + "q" * 100, name="first")
    read = read_timer({"web_url": URL, "cron": "@daily", "labels": {"a": "b"}})
    second = make_timer(web_url=URL, recurrence=read.recurrence, options=read.options)
    head, *rows = run("list").splitlines()
    assert head.split() == ["ID", "STATUS", "DUE", "AT", "SCHEDULE", "NAME", "URL"]
    assert rows[0].split()[0] == str(second.pk)
    assert "0 0 * * * UTC" in rows[0]
    assert "once" in rows[1]
    assert {row.index("http://") for row in rows} == {head.index("URL")}
    assert len(rows[1].split()[-1]) == 60
    (only,) = json.loads(run("list", "--label", "a=b", "--json"))["timers"]
    assert only["task_id"] == str(second.pk)


@db
def test_listing_takes_the_filters_of_the_api(run, make_timer, django_user_model):
    owner = django_user_model.objects.create_user("me@example.com", "secret")
    given = {"callback_url": URL}
    ours = make_timer(
        web_url="http://b.example/x", name="Our own", delay_seconds=3600, owner_id=owner.pk, options=given
    )
    make_timer(web_url=URL, delay_seconds=60)
    soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    for words in (
        ["--host", "b.example"],
        ["--name", "our"],
        ["--url-prefix", "http://b"],
        ["--due-from", soon],
        ["--has-callback"],
        ["--status", "scheduled", "--status", "paused", "--once", "--due-from", soon],
    ):
        assert [one["task_id"] for one in json.loads(run("list", "--json", *words))["timers"]] == [str(ours.pk)]
    assert json.loads(run("list", "--json", "--recurring"))["timers"] == []
    for words in (["--due-to", soon], ["--no-callback"]):
        (other,) = json.loads(run("list", "--json", *words))["timers"]
        assert other["task_id"] != str(ours.pk)


@db
def test_listing_goes_on_by_its_cursor(run, make_timer):
    made = {str(make_timer().pk) for _ in range(5)}
    first = json.loads(run("list", "--limit", "3", "--json"))
    assert f"--cursor {first['next']}" in run("list", "--limit", "3")
    second = json.loads(run("list", "--limit", "3", "--cursor", first["next"], "--json"))
    assert {one["task_id"] for one in first["timers"] + second["timers"]} == made
    assert second["next"] is None


@db
def test_a_wrong_filter_is_named():
    assert "limit: " in refuse("list", "--limit", "201")
    assert "label: A label is asked for as key=value." in refuse("list", "--label", "a")
    assert "cursor: This cursor was not given" in refuse("list", "--cursor", "x")
    assert "due_from: " in refuse("list", "--due-from", "yesterday")


# Cancelling and replaying


@db
def test_cancelling_cancels_each_and_says_what_came_of_it(run, make_timer):
    first, second = make_timer(), make_timer()
    said = run("cancel", str(first.pk), str(second.pk), str(first.pk)).splitlines()
    assert said == [f"{timer.pk} cancelled: It was cancelled." for timer in (first, second)]
    assert run("cancel", str(first.pk)) == f"{first.pk} cancelled: had ended before\n"


@db
def test_cancelling_with_a_slip_in_one_id_cancels_none(make_timer):
    refuse("cancel", str(make_timer().pk), str(uuid.uuid4()))
    assert Delivery.objects.get().state == State.SCHEDULED


@db
def test_replaying_sends_a_dead_letter_again(run, make_timer, delivery_of):
    timer = make_timer()
    assert "has no delivery that failed" in refuse("replay", str(timer.pk))
    Delivery.objects.update(state=State.FAILED, finished_at=datetime.now(UTC))
    delivery = delivery_of(timer)
    assert run("replay", str(timer.pk), "--delivery-id", str(delivery.pk)) == f"{delivery.pk} is sent again\n"
    assert Delivery.objects.get().state == State.SCHEDULED


# Previewing


def test_previewing_shows_moments_and_changes_of_clocks(run):
    words = ["--cron", "0 9 * * *", "--timezone", "Europe/Berlin", "--after", "2026-03-27T12:00:00Z", "--count", "2"]
    first, second, last = run("preview", *words).splitlines()
    assert first == "2026-03-28T08:00:00Z  2026-03-28T09:00:00+01:00"
    assert second.startswith("2026-03-29T07:00:00Z  2026-03-29T09:00:00+02:00  Clocks in Europe/Berlin go forward")
    assert last == "and so on"
    assert len(json.loads(run("preview", *words, "--json"))["moments"]) == 2


def test_previewing_what_is_called_once(run):
    assert run("preview", "--due-at", "2030-01-05T09:00:00Z").splitlines()[-1] == "and no more"
    assert "count: " in refuse("preview", "--seconds", "1", "--count", "101")
    assert "seconds: Say when" in refuse("preview")


# Commands of crontabs

G = {"method": "GET"}
CURL = {"timeout_seconds": 300, "success_statuses": ["2xx", "3xx"]}
WGET = {"timeout_seconds": 300, "follow_redirects": True}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

COMMANDS = {
    URL: G,
    f"'{URL}?a=1&b=$c'": G | {"web_url": URL + "?a=1&b=$c"},
    f"{URL} >/dev/null 2>&1": G,
    f"curl {URL}": G | CURL,
    f"/usr/bin/curl -fsS -o /dev/null {URL} > /dev/null 2> /dev/null": G | CURL,
    f"curl --silent --show-error --fail --output /dev/null {URL} # nightly": G | CURL,
    f"curl -sSLo/dev/null {URL}": G | {"timeout_seconds": 300, "follow_redirects": True},
    f"curl -m 20 {URL}": G | CURL | {"timeout_seconds": 20},
    f"curl --max-time 2.5 {URL}": G | CURL | {"timeout_seconds": 2.5},
    f"curl -XDELETE {URL}": {"method": "DELETE"} | CURL,
    f"curl {URL} -X POST": {"method": "POST", "body": ""} | CURL,
    f"curl -X PUT -d a=1 -d 'b=$2' {URL}": {"method": "PUT", "body": "a=1&b=$2", "headers": FORM} | CURL,
    f"curl --data-raw @x {URL}": {"method": "POST", "body": "@x", "headers": FORM} | CURL,
    f"""curl -H 'content-type: text/xml' -d "<a b=\\"c\\"/>" {URL}""": {
        "method": "POST",
        "body": '<a b="c"/>',
        "headers": {"content-type": "text/xml"},
    }
    | CURL,
    f"""curl --json '{{"a": 1}}' {URL}""": {
        "method": "POST",
        "body": '{"a": 1}',
        "headers": {"Content-Type": "application/json", "Accept": "application/json"},
    }
    | CURL,
    f"curl -u me:pw:x {URL}": G | {"headers": {"Authorization": "Basic bWU6cHc6eA=="}} | CURL,
    f"curl -H X:1 -H 'Y: a b' {URL}": G | {"headers": {"X": "1", "Y": "a b"}} | CURL,
    "curl http://[::1]/ -H A:\\ b\\;c -H 'D: ''e'": G
    | {"web_url": "http://[::1]/", "headers": {"A": "b;c", "D": "e"}}
    | CURL,
    f"wget -q -O /dev/null {URL}": G | WGET,
    f"wget -qO- '{URL}' >/dev/null": G | WGET,
    f"wget --quiet --output-document=- {URL} 1>>/dev/null 2>>/dev/null": G | WGET,
    f"wget {URL} -O - -q": G | WGET,
}


@each("command", COMMANDS)
def test_a_command_is_taken_over_as_it_means(command):
    expected = {"web_url": URL, "headers": {}} | COMMANDS[command]
    found = crontab.command(command)
    assert {"headers": {}} | found == expected
    read_timer(found | {"seconds": 1})


NOT_TAKEN = {
    "": "there is no command",
    "/usr/bin/backup": "'/usr/bin/backup' is no URL, curl or wget",
    f"root curl {URL}": "'root' is no URL",
    f"A=b curl {URL}": "'A=b' is no URL",
    f"{URL} {URL}": "after the URL there is",
    f"curl {URL} | logger": "a pipe",
    f"curl {URL} || true": "||",
    f"curl {URL} && true": "&&",
    f"curl {URL}?a=1&b=2": "& (in the background)",
    f"curl {URL}; true": "; (several commands)",
    f"curl {URL} > /tmp/x": "a redirection other than to /dev/null",
    f"curl {URL} 2>/tmp/x": "a redirection other than to /dev/null",
    f"curl {URL} >/dev/nullx": "a redirection other than to /dev/null",
    f"curl {URL} < x": "a redirection of input",
    f"curl {URL} &>/dev/null": "& (in the background)",
    f"(curl {URL})": "a subshell",
    f"curl {URL}?$A": "a variable or substitution",
    f'curl "{URL}?$A"': "a variable or substitution",
    f'curl "{URL}?`id`"': "backquotes",
    f"curl {URL}?`id`": "backquotes",
    f"curl {URL} -d *": "a pattern (*)",
    f"curl {URL} -d ~/x": "~ is a home directory",
    f"curl '{URL}": "a quote (') is not closed",
    f'curl "{URL}': 'a quote (") is not closed',
    f"curl {URL}\\": "ends with a backslash",
    "curl -s": "curl is given no URL",
    f"curl {URL} {URL}": "curl is given 2 URLs",
    f"curl '{URL}/[1-3]'": "expands the brackets",
    f"curl {URL}/{{a,b}}": "expands the brackets",
    f"curl -k {URL}": "curl -k cannot be taken over",
    f"curl -sk {URL}": "curl -k cannot be taken over",
    f"curl --retry 3 {URL}": "curl --retry cannot be taken over",
    f"curl --max-time=3 {URL}": "curl --max-time=3 cannot be taken over",
    f"curl {URL} -m": "curl -m has no value",
    f"curl {URL} -m x": "curl -m x is no number of seconds",
    f"curl -o out {URL}": "curl -o out writes a file",
    f"curl -O {URL}": "curl -O cannot be taken over",
    f"curl -d @file {URL}": "curl --data @file reads a file",
    f"curl -H @file {URL}": "reads a file",
    f"curl -H 'A:' {URL}": "names no header with a value",
    f"curl -H A:1 -H a:2 {URL}": "the header a is given twice",
    f"curl -d a --json 1 {URL}": "either --json or --data",
    f"curl -u me {URL}": "asks for it",
    f"wget -q {URL}": "wget without -O",
    f"wget -O file {URL}": "wget -O file writes a file",
    f"wget -qO- --post-data=a {URL}": "wget --post-data=a cannot be taken over",
    f"wget --spider {URL}": "wget --spider cannot be taken over",
}


@each("command", NOT_TAKEN)
def test_a_command_that_means_more_is_refused_by_name(command):
    with pytest.raises(crontab.RefusedError) as caught:
        crontab.command(command)
    assert NOT_TAKEN[command] in str(caught.value)


LINES = {
    f"@reboot {URL}": "@reboot is no moment in time",
    f"@Reboot curl {URL}": "@reboot is no moment in time",
    f"@fortnightly {URL}": "There is no '@fortnightly'",
    f"* * * * {URL}": "a schedule of five fields",
    "* * * * *": "a schedule of five fields",
    "@daily": "a schedule of five fields",
    f"61 * * * * {URL}": "The minute field '61' means nothing",
    f"0 0 30 2 * {URL}": "never comes",
    f"0 0 * * * curl -d a%b {URL}": "% begins the command's standard input",
    "0 0 * * * rm -rf /": "'rm' is no URL",
    "TZ=Mars/Base": "TZ: ",
    "CRON_TZ=": "CRON_TZ: ",
}


@each("text", LINES)
def test_a_line_that_cannot_be_taken_over_says_why(text):
    (line,) = crontab.read([text])
    assert LINES[text] in line.error
    assert not line.timer


def test_a_file_is_read_line_by_line():
    text = f"""
# a comment
MAILTO=me@example.com
0 9 * * MON-FRI  {URL}
CRON_TZ = 'Europe/Berlin'
@Daily\tcurl -d 100\\% {URL}
TZ=Asia/Tokyo
\t@hourly {URL}
@hourly {URL}
CRON_TZ=Nowhere
@hourly {URL}
CRON_TZ="America/New_York"
@hourly {URL}
"""
    lines = list(crontab.read(text.splitlines(), timezone="Asia/Kolkata"))
    assert [line.number for line in lines] == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    made = [(line.timer["cron"], line.timer["timezone"]) for line in lines if line.timer]
    assert made == [
        ("0 9 * * MON-FRI", "Asia/Kolkata"),
        ("0 0 * * *", "Europe/Berlin"),
        ("0 * * * *", "Europe/Berlin"),
        ("0 * * * *", "Europe/Berlin"),
        ("0 * * * *", "America/New_York"),
    ]
    assert lines[3].timer["body"] == "100%"
    assert [line.note for line in lines if line.note] == [
        "ignored: the variable MAILTO means nothing here",
        "CRON_TZ: from here on in Europe/Berlin",
        "TZ: from here on in Europe/Berlin",
        "CRON_TZ: from here on in America/New_York",
    ]
    assert lines[-4].error.startswith("CRON_TZ: ")
    assert lines[-3].error == "its time zone is not known, see line 10"
    labels = [line.timer["labels"]["crontab"] for line in lines if line.timer]
    # The same line twice is two timers to cron; in another zone it is another.
    assert len(set(labels)) == len(labels)


# Importing


@pytest.fixture
def cron_file(tmp_path):
    path = tmp_path / "crontab"
    path.write_text(f"# mine\nMAILTO=x\n0 9 * * * {URL}\n@hourly curl -fsS {URL} >/dev/null 2>&1\n")
    return path


@db
def test_importing_says_of_each_line_what_was_made(run, cron_file):
    said = run("import", str(cron_file), "--timezone", "Europe/Berlin").splitlines()
    second, first = Timer.objects.order_by("-pk")
    assert said == [
        "line 2: ignored: the variable MAILTO means nothing here",
        f"line 3: made {first.pk}: GET {URL} at 0 9 * * * Europe/Berlin",
        f"line 4: made {second.pk}: GET {URL} at 0 * * * * Europe/Berlin",
        "All 2 are there.",
    ]
    assert (first.cron, first.timezone) == ("0 9 * * *", "Europe/Berlin")
    assert first.options["method"] == "GET"
    assert TimerLabel.objects.filter(timer=first.pk, label__startswith="crontab=").exists()


@db
def test_importing_again_makes_nothing_twice(run, cron_file):
    run("import", str(cron_file))
    latest = Timer.objects.order_by("-pk")[0]
    run("cancel", str(latest.pk))
    assert f"line 4: was made before: {latest.pk} (cancelled)" in run("import", str(cron_file))
    cron_file.write_text(cron_file.read_text() + f"@daily {URL}\n")
    assert "line 5: made" in run("import", str(cron_file))
    assert Timer.objects.count() == 3


@db
def test_a_dry_run_makes_nothing(run, cron_file):
    said = run("import", "--dry-run", str(cron_file))
    assert f"line 3: would be made: GET {URL} at 0 9 * * * UTC" in said
    assert said.endswith("All 2 can be made.\n")
    assert not Timer.objects.exists()


@db
def test_importing_goes_on_after_a_line_that_it_refuses(capsys, cron_file):
    lines = ["0 * * * * curl http://a.example/ | sh", "0 * * * * curl -X GET -d a http://a.example/"]
    cron_file.write_text("\n".join([*lines, f"@daily {URL}"]))
    assert refuse("import", str(cron_file)) == "2 of the lines could not be taken over; 1 could."
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "line 1: not made: a pipe is for a shell, and there is none here"
    assert said[1] == "line 2: not made: body: GET carries no body."
    assert said[2].startswith("line 3: made ")
    assert Timer.objects.count() == 1


@db
def test_importing_from_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"@daily {URL}\n"))
    assert run("import", "-").endswith("All 1 are there.\n")


@db
def test_what_cannot_be_read_is_refused(tmp_path):
    assert "cannot be read" in refuse("import", str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    assert "cannot be read" in refuse("import", str(tmp_path / "bytes"))
    assert "timezone: " in refuse("import", "-", "--timezone", "Mars/Base")


@db
def test_importing_a_file_that_is_none_ends_soon(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_text("junk\n" * 100_000)
    assert refuse("import", str(path)) == "None of the first 1000 lines could be taken over; the others were not read."
    # What comes after a line that can be taken is read.
    path.write_text(f"@daily {URL}\n" + "junk\n" * 1500)
    assert refuse("import", str(path)) == "1500 of the lines could not be taken over; 1 could."
    # It is known to be too large before it is read.
    with path.open("w") as file:
        file.truncate(importing.FILE_BYTES_MOST + 1)
    assert "larger than 64 MiB; nothing was read" in refuse("import", str(path))
    monkeypatch.setattr(importing, "FILE_BYTES_MOST", 4)
    monkeypatch.setattr("sys.stdin", io.StringIO("12345"))
    assert "- is larger than" in refuse("import", "-")


def test_line_that_is_very_long_takes_no_time_that_grows_faster():
    word = "a" * (crontab.LINE_MOST - 100)
    (line,) = crontab.read([f"@daily curl http://a.example/{word} -sSf"])
    assert line.timer["web_url"] == f"http://a.example/{word}"
    (line,) = crontab.read([f"@daily curl http://a.example/{word}{word}"])
    assert str(line.error) == "it is longer than 131,072 characters"
