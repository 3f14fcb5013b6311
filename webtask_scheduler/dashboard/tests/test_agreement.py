"""The page, the API and the tables say the same of a timer, whatever happened to it."""

import random
import re
from collections import Counter
from urllib.parse import quote

import pytest
from django.core.exceptions import ValidationError

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.tests.support.acting import begin, every, put_back, run

pytestmark = pytest.mark.django_db

TIMERS = 200
DEEDS = (services.pause, services.resume, services.cancel, services.run_now, services.replay)
# What pages call what the tables call `scheduled`.
FINER = {"late": "scheduled", "retrying": "scheduled"}

# Of each timer, its latest promised delivery, and how many deliveries it has.
TOLD = """
SELECT DISTINCT ON (timer.id) timer.id::text, timer.name, latest.state, latest.due_at, latest.next_attempt_at,
       (SELECT count(*) FROM scheduler_attempt WHERE delivery_id = latest.id),
       (SELECT count(*) FROM scheduler_delivery WHERE timer_id = timer.id)
  FROM scheduler_timer timer JOIN scheduler_delivery latest ON latest.timer_id = timer.id AND NOT latest.extra
 ORDER BY timer.id, latest.number DESC
"""


@pytest.fixture
def timers(make_timer):
    """Timers of all kinds, to which happens what may happen to a timer. The seed is printed where a test fails."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    made = []
    for number in range(TIMERS):
        options = {"retry": {"max_attempts": dice.choice([1, 2, 4])}}
        if dice.random() < 0.2:
            options["max_lateness"] = "PT5S"
        if dice.random() < 0.3:
            schedule = every(dice.choice([10, 60, 3600]))
            fields = {"recurrence": schedule, "due_at": schedule.starts_at}
        else:
            fields = {"delay_seconds": dice.choice([1, 60, 86_400])}
        made.append(make_timer(f"http://host{number % 7}.example/", name=f"timer {number}", options=options, **fields))
    for answer in ({"status_code": 200}, {"status_code": 503, "error": "status"}) * 2:
        for timer in dice.sample(made, TIMERS // 4):
            put_back(timer.pk, dice.choice([0.5, 2.0, 60.0]))
        run(**answer)
        for timer in dice.sample(made, TIMERS // 5):
            try:
                dice.choice(DEEDS)(timer.pk)
            except ValidationError:
                continue
    # Some are in the middle of a call, and some are late.
    for timer in dice.sample(made, TIMERS // 10):
        put_back(timer.pk, 2.0)
    begin()
    for timer in dice.sample(made, TIMERS // 10):
        put_back(timer.pk, 2.0)
    facts.forget()
    return made


def test_page_api_and_tables_agree_on_200_timers(client, sql, timers):
    _agree_on_each(client, sql)
    _agree_on_lists_and_counts(client, sql)


def _agree_on_each(client, sql):
    told = sql(TOLD)
    assert len(told) == TIMERS
    differences = []
    for timer_id, name, state, due_at, next_at, attempts, deliveries in told:
        body = client.get(f"/timer/{timer_id}").json()
        listed = client.get(f"/timer/{timer_id}/deliveries").json()["deliveries"]
        page = client.get(f"/timers/{timer_id}", headers={"accept": "text/html"}).content.decode()
        head = page[page.index('data-key="head"') :]
        shown = re.search(r'data-state="([a-z]+)"', head)[1]
        clock = re.search(r'<div class="clock">.*?</div>', head, re.DOTALL)[0]
        clock_at = re.search(r'datetime="([^"]+)"', clock)
        waits_for = instant_text(next_at) if state == "scheduled" else None
        table = (state, instant_text(due_at), waits_for, attempts, deliveries)
        api = (body["status"], body["due_at"], body["next_attempt_at"], len(body["attempts"]), len(listed))
        parts = page.split('<details class="delivery"')[1:]
        # The latest promised delivery: the first that is no extra one.
        latest = next(part for part in parts if ">extra</span>" not in part.partition("</summary>")[0])
        rows = len(re.findall(r"<tr><td>\d+</td>", latest))
        due = re.search(r'<span class="due"><time datetime="([^"]+)"', latest)[1]
        at = clock_at[1] if clock_at and waits_for else None
        seen = (FINER.get(shown, shown), due, at, rows, len(parts))
        if not table == api == seen:
            differences.append(f"{name}: tables {table}, API {api}, page {seen}")
    assert differences == []


def _agree_on_lists_and_counts(client, sql):
    by_state = {}
    for timer_id, _, state, *_ in sql(TOLD):
        by_state.setdefault(state, set()).add(timer_id)
    assert len(by_state) >= 6, "the dice make too few states for this test"
    for state, ids in by_state.items():
        assert all_of(client, f"/timer?status={state}") == ids, state
        assert pages_of(client, f"/timers?status={state}") == ids, state
    tiles = dict(re.findall(r'status=([a-z,]+)"[^>]*><span>[^<]*</span><strong>([\d,]+)', overview(client)))
    deliveries = Counter(state for (state,) in sql("SELECT state FROM scheduler_delivery"))
    for state in ("paused", "held", "failed"):
        assert int(tiles[state]) == deliveries[state], state
    assert int(tiles["claimed,running"]) == deliveries["claimed"] + deliveries["running"]


def overview(client):
    return client.get("/", headers={"accept": "text/html"}).content.decode()


def all_of(client, path):
    """Return the ids on all pages of a list of the API."""
    found, cursor = [], ""
    while cursor is not None:
        answer = client.get(f"{path}&limit=50&cursor={quote(cursor)}").json()
        found += [one["task_id"] for one in answer["timers"]]
        cursor = answer["next"]
    assert len(found) == len(set(found))
    return set(found)


def pages_of(client, path):
    """Return the ids on all pages of the list of the dashboard."""
    found, following = [], path
    while following:
        page = client.get(following, headers={"accept": "text/html"}).content.decode()
        found += re.findall(r'<li class="row" data-key="([^"]+)"', page)
        link = re.search(r'rel="next" href="([^"]+)"', page)
        following = link and link[1].replace("&amp;", "&")
    assert len(found) == len(set(found))
    return set(found)
