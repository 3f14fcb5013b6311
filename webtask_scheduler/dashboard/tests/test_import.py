"""Importing on a page: it is checked first, and what was checked is made."""

import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.test import Client

from webtask_scheduler.dashboard import importing
from webtask_scheduler.scheduler.models import Delivery, State, Timer

pytestmark = pytest.mark.django_db
URL = "http://a.example/hook"
CRONTAB = f"# mine\nMAILTO=x\n0 9 * * * {URL}\n@hourly curl -fsS {URL} | sh\n"


def check(client, text="", **more):
    return client.post("/import", {"text": text, "check": "1"} | more)


def apply(client, checked, text, **more):
    """Press the button that confirms what a page shows."""
    return client.post("/import", {"text": text, "apply": "1", "checked": checked.context.get("mark", "")} | more)


def counts(answer):
    return answer.context["counts"]


def test_checking_says_of_each_line_what_it_would_become_and_makes_nothing(client):
    answer = check(client, CRONTAB, zone="Europe/Berlin")
    shown = answer.content.decode()
    assert counts(answer) == {"refused": 1, "new": 1, "there": 0, "notes": 1}
    (new,) = answer.context["kinds"]["new"]
    assert (new.number, new.call, new.schedule) == (3, f"GET {URL}", "0 9 * * * Europe/Berlin")
    assert new.next_at.minute == 0
    for said in ("a pipe is for a shell", "the variable MAILTO", "1 timer will be made", "Make them"):
        assert said in shown
    assert not Timer.objects.exists()


def test_what_was_checked_is_made_and_never_twice(client):
    made = apply(client, check(client, CRONTAB), CRONTAB)
    timer = Timer.objects.get()
    assert f"/timers/{timer.pk}" in made.content.decode()
    assert "1 timer was made" in made.content.decode()
    # The command knows what the page made, and the other way round.
    again = check(client, CRONTAB)
    assert counts(again) == {"refused": 1, "new": 0, "there": 1, "notes": 1}
    assert "Make them" not in again.content.decode()
    apply(client, again, CRONTAB)
    assert Timer.objects.count() == 1


def test_command_and_page_know_what_the_other_made(client, tmp_path, capsys):
    lines = tmp_path / "lines"
    lines.write_text(f"@daily {URL}\n")
    call_command("timer", "import", str(lines))
    assert counts(check(client, lines.read_text()))["there"] == 1
    text = json.dumps({"web_url": URL, "every": "PT10M"})
    apply(client, check(client, text), text)
    lines.write_text(text)
    capsys.readouterr()
    call_command("timer", "import", str(lines))
    assert "was made before" in capsys.readouterr().out
    assert Timer.objects.count() == 2


def test_text_that_was_changed_since_is_shown_again(client):
    checked = check(client, CRONTAB)
    for text, more in ((f"{CRONTAB}@daily {URL}\n", {}), (CRONTAB, {"zone": "Europe/Berlin"})):
        answer = apply(client, checked, text, **more)
        assert answer.status_code == 409
        assert "nothing was made" in answer.content.decode()
    assert client.post("/import", {"text": CRONTAB, "apply": "1"}).status_code == 409
    assert not Timer.objects.exists()


def test_file_takes_the_place_of_the_text(client):
    file = SimpleUploadedFile("crontab", b"\xef\xbb\xbf@daily http://a.example/caf\xc3\xa9\r\n")
    answer = check(client, CRONTAB, file=file)
    assert counts(answer)["new"] == 1
    assert answer.context["form"].initial["text"] == "@daily http://a.example/café\n"
    apply(client, answer, answer.context["form"].initial["text"])
    assert Timer.objects.count() == 1


def test_what_cannot_be_read_is_refused_by_name(client, monkeypatch):
    for fields, said in (
        ({"text": ""}, "no line yet"),
        ({"text": "# nothing\n\n"}, "no line yet"),
        ({"text": CRONTAB, "zone": "Mars/Base"}, "There is no time zone"),
        ({"file": SimpleUploadedFile("x", b"\xff\xfe")}, "no text in UTF-8"),
        ({"file": SimpleUploadedFile("x", b"#" * (importing.BYTES_MOST + 1))}, "At most 1024 KiB"),
        ({"text": "#" * (importing.BYTES_MOST + 1)}, "At most 1024 KiB"),
        ({"text": f"@daily {URL}\n" * (importing.LINES_MOST + 1)}, "At most 1000 lines"),
    ):
        answer = check(client, **fields)
        assert answer.status_code == 400, fields
        assert said in answer.content.decode()
    assert not Timer.objects.exists()


def test_import_needs_its_token_and_is_for_the_one_who_sends_it(user, settings):
    client = Client(enforce_csrf_checks=True)
    assert check(client, CRONTAB).status_code == 403
    settings.WEBTASK_API_AUTH = "key"
    client = Client()
    assert check(client, CRONTAB).status_code == 302
    client.force_login(user)
    apply(client, check(client, CRONTAB), CRONTAB)
    assert Timer.objects.get().owner == user


@pytest.mark.usefixtures("empty_store")
def test_limit_of_the_owner_holds_for_all_lines_together(client, settings):
    settings.WEBTASK_LIMIT_TIMERS_WAITING = 2
    text = "\n".join(f"@daily {URL}/{number}" for number in range(3))
    answer = apply(client, check(client, text), text)
    assert answer.status_code == 409
    assert "WEBTASK_LIMIT_TIMERS_WAITING" in answer.content.decode()
    assert not Timer.objects.exists()


def test_hundreds_of_lines_take_few_statements(client, django_assert_max_num_queries):
    text = "\n".join(f"{number % 60} {number // 60} * * * {URL}/{number}" for number in range(600))
    checked = check(client, text)
    assert len(checked.context["kinds"]["new"]) == importing.SHOWN
    assert "and 500 more" in checked.content.decode()
    with django_assert_max_num_queries(20):
        apply(client, checked, text)
    assert Timer.objects.count() == 600
    with django_assert_max_num_queries(20):
        assert counts(check(client, text))["there"] == 600


# JSON Lines


def exported(capsys, *words):
    capsys.readouterr()
    call_command("timer", "export", *words)
    return capsys.readouterr().out


def test_export_is_imported_as_it_goes_on(client, make_timer, capsys, user):
    def make(**fields):
        return client.post("/timer", {"web_url": URL} | fields, content_type="application/json").json()["task_id"]

    make(name="report", cron="0 9 * * MON-FRI", timezone="Europe/Berlin", labels={"team": "a"}, max_occurrences=5)
    make(name="poll", every="PT10M", starts_at="2030-01-05T09:00:00Z")
    make(name="once", due_at="2030-01-05T09:00:00.5Z", method="PUT", body={"a": [1]}, headers={"X-Key": "secret"})
    paused = make(name="paused", due_at="2030-01-05T09:00:00Z")
    assert client.post(f"/timer/{paused}/pause", {}, content_type="application/json").status_code == 200
    client.delete(f"/timer/{make(name='ended', seconds=5)}")
    Delivery.objects.filter(timer__name="report").update(occurrence=3)
    text = exported(capsys)
    assert len(text.splitlines()) == 5
    # The service that they come from has them.
    assert counts(check(client, text)) == {"refused": 0, "new": 0, "there": 4, "notes": 1}
    # Another owner gets the same, without the secret that was not told.
    client.force_login(user)
    checked = check(client, text)
    assert counts(checked) == {"refused": 1, "new": 3, "there": 0, "notes": 1}
    assert "headers" in checked.context["kinds"]["refused"][0].error
    text = text.replace('"X-Key": "***"', '"X-Key": "new"')
    apply(client, check(client, text), text)
    mine = {timer.name: timer for timer in Timer.objects.filter(owner=user)}
    assert sorted(mine) == ["once", "paused", "poll", "report"]
    assert mine["report"].max_occurrences == 3
    assert (mine["report"].cron, mine["report"].timezone) == ("0 9 * * MON-FRI", "Europe/Berlin")
    assert mine["report"].options["labels"]["team"] == "a"
    assert mine["poll"].starts_at.isoformat() == "2030-01-05T09:00:00+00:00"
    states = dict(Delivery.objects.filter(timer__owner=user).values_list("timer__name", "state"))
    assert states == {
        "once": State.SCHEDULED,
        "poll": State.SCHEDULED,
        "report": State.SCHEDULED,
        "paused": State.PAUSED,
    }
    due = Delivery.objects.get(timer=mine["once"]).due_at
    assert due.isoformat() == "2030-01-05T09:00:00.500000+00:00"
    # And it knows them when they come back by another file.
    assert counts(check(client, exported(capsys, "--owner", user.email).replace("***", "new")))["new"] == 0


def test_yaml_comes_back_as_the_same_by_command_and_page(client, make_timer, capsys, user, tmp_path):
    fields = {
        "name": "no",
        "cron": "0 9 * * 1",
        "labels": {"a": "12:30"},
        "body": "one\ntwo: [\n",
        "metadata": [1.5, None],
    }
    client.post("/timer", {"web_url": f"{URL}?a=b#c", "method": "PUT"} | fields, content_type="application/json")
    client.post("/timer", {"web_url": URL, "due_at": "2030-01-05T09:00:00.5Z"}, content_type="application/json")
    text = exported(capsys, "--format", "yaml")
    assert text == client.get("/timers/export.yaml").content.decode()
    assert text.startswith("timers:\n- task_id: ")
    # A minute later it is the same file.
    assert "time_left_in_seconds" not in text
    # The service that they come from has them; another owner gets the same.
    assert counts(check(client, text)) == {"refused": 0, "new": 0, "there": 2, "notes": 0}
    file = tmp_path / "timers.yaml"
    file.write_text(text)
    call_command("timer", "import", str(file), "--owner", user.email)
    mine = exported(capsys, "--format", "yaml", "--owner", user.email)
    shown = {
        one["name"]: one
        for one in map(json.loads, exported(capsys, "--owner", user.email).splitlines())
        if "name" in one
    }
    assert {name: shown["no"][name] for name in fields if name != "labels"} == {
        name: value for name, value in fields.items() if name != "labels"
    }
    assert shown["no"]["labels"]["a"] == "12:30"
    # Nothing more is made of it, in whichever form it comes.
    client.force_login(user)
    for again in (mine, text, exported(capsys, "--owner", user.email)):
        assert counts(check(client, again)) == {"refused": 0, "new": 0, "there": 2, "notes": 0}
    assert exported(capsys, "--format", "yaml", "--host", "nothing.example") == "timers: []\n"


def test_yaml_is_checked_by_item_and_made(client):
    text = f"""# ours
timers:
  - {{web_url: "{URL}", every: PT10M}}
  - {{web_url: "{URL}", every: PT10S}}
  - {{web_url: "{URL}", every: never}}
  - {{web_url: "{URL}", web_url: "{URL}"}}
  - 5
"""
    checked = check(client, text)
    assert [one.number for one in checked.context["kinds"]["new"]] == [3, 4]
    said = {one.number: one.error for one in checked.context["kinds"]["refused"]}
    assert [said[5].partition(":")[0], said[6], said[7].partition(",")[0]] == [
        "every",
        "web_url is given twice",
        "A JSON object is required",
    ]
    apply(client, checked, text)
    assert counts(check(client, text))["there"] == 2
    # Several in one line are told apart.
    line = f'[{{"web_url": "{URL}/a", "every": "PT1H"}}, {{"web_url": "{URL}/b", "every": "PT1H"}}]'
    apply(client, check(client, line), line)
    assert sorted(Timer.objects.values_list("web_url", flat=True)) == [URL, URL, f"{URL}/a", f"{URL}/b"]
    assert {one.timer_id for one in check(client, line).context["kinds"]["there"]} == set(
        Timer.objects.filter(web_url__startswith=f"{URL}/").values_list("pk", flat=True)
    )


def test_yaml_that_cannot_be_read_is_refused_as_a_whole(client, monkeypatch, tmp_path):
    laughs = "".join(f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
    file = tmp_path / "timers.yaml"
    for text, said in (
        ("timers:\n  - [", "Line 3 is no YAML"),
        (f"x-a0: &a0 lol\n{laughs}timers: [*a19]", "200,000 values"),
        ("timers: " + "[" * 5000, "nested too deeply"),
        ("timers: 5", "A list of timers"),
        ("timers:\n" + f"- web_url: {URL}\n" * (importing.LINES_MOST + 1), "At most 1000 timers"),
    ):
        answer = check(client, text)
        assert answer.status_code == 400, text[:40]
        assert said in answer.content.decode()
        if "At most" not in said:
            file.write_text(text)
            with pytest.raises(CommandError, match=said):
                call_command("timer", "import", str(file))
    answer = check(client, "timers: []")
    assert (answer.status_code, counts(answer)["new"]) == (200, 0)
    assert not Timer.objects.exists()


def test_lines_that_are_no_timers_say_why(client):
    lines = [
        '{"web_url": "http://a.example/"',
        "[1]",
        '{"web_url": "ftp://a.example/", "seconds": 5}',
        '{"web_url": "http://a.example/", "seconds": 5, "colour": "red"}',
        '{"web_url": "http://a.example/", "every": "PT10M", "ends_at": "2020-01-01T00:00:00Z"}',
        '{"web_url": "http://a.example/", "seconds": 5, "labels": 3}',
        '{"web_url": "http://a.example/", "seconds": 5, "metadata": ' + "[" * 500 + "]" * 500 + "}",
        '{"web_url": "http://a.example/", "seconds": 5}',
        '{"web_url": "http://a.example/", "seconds": 5}',
    ]
    answer = check(client, "\n".join(["", *lines]))
    said = {one.number: one.error for one in answer.context["kinds"]["refused"]}
    for number, part in (
        (2, "JSON"),
        (3, "object"),
        (4, "web_url"),
        (5, "colour"),
        (6, "still to come"),
        (7, "labels"),
    ):
        assert part in said.pop(number)
    assert "nested" in said.pop(8)
    assert not said
    # The same line twice is two timers.
    assert counts(answer)["new"] == 2


def test_what_a_shown_timer_says_of_itself_has_its_type(client):
    shown = {"web_url": URL, "every": "PT1H"}
    wrong = (
        ({"task_id": [1]}, "task_id: "),
        ({"task_id": 7}, "task_id: "),
        ({"status": "asleep"}, "status: "),
        ({"finished_at": "soon"}, "finished_at: "),
        ({"occurrence": "x", "callback_for": {}}, "callback_for: "),
        ({"attempts": 3}, "attempts: "),
        ({"colour": "red"}, "colour: Unknown field"),
    )
    # As the API and an export show them, with what is not there yet.
    right = ({"occurrence": 2, "status": "paused", "finished_at": None, "attempts": []}, {"task_id": None})
    answer = check(client, "\n".join(json.dumps(shown | more) for more, *_ in [*wrong, *((one,) for one in right)]))
    # A check was asked for, and it is made; how many lines are refused stands first.
    assert answer.status_code == 200
    assert "2 timers will be made. 7 lines are not taken over." in answer.content.decode()
    refused = answer.context["kinds"]["refused"]
    assert [one.number for one in refused] == list(range(1, len(wrong) + 1))
    for one, (_more, said) in zip(refused, wrong, strict=True):
        assert said in one.error
    assert "occurrence: " in refused[4].error
