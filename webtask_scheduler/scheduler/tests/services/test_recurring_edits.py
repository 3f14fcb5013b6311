"""What an operator does to the PeriodicTask, or the schedule, of a timer that recurs, through the admin or the ORM.

As test_foreign_edits, for each kind of schedule that such a timer's row can show.
"""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.delivery.call import call_url
from webtask_scheduler.scheduler.models import Delivery, State, Timer
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.queue.attempts import record_outcomes, start_attempts
from webtask_scheduler.scheduler.rules.recurrence import Recurrence
from webtask_scheduler.scheduler.tests.support.acting import claim as claim_due
from webtask_scheduler.scheduler.tests.support.acting import every, put_back
from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.doors import (
    DISABLE,
    ENABLE,
    act,
    address_of,
    bare,
    clocked_form,
    form,
    post,
    saved,
    soon,
    sweep,
    through,
)
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS

pytestmark = pytest.mark.django_db

DAILY = Recurrence(cron="0 9 * * *", timezone="Europe/Berlin")
# Celery wants both days to match, cron either.
EITHER_DAY = Recurrence(cron="0 12 13 * FRI")
KINDS = {
    "crontab": lambda: DAILY,
    "interval": lambda: every(3600),
    "clocked": lambda: EITHER_DAY,
}
kinds = each("kind", KINDS)


@pytest.fixture
def recurring(make_timer):
    """Return a function that makes a timer of one of KINDS, or of a schedule."""

    def make(kind, web_url="http://127.0.0.1:9/", *, due=False, **fields):
        schedule = KINDS[kind]() if isinstance(kind, str) else kind
        timer = make_timer(web_url, recurrence=schedule, delay_seconds=None, **fields)
        if due:
            put_back(timer)
        return timer

    return make


class Hook:
    """A receiver, and the beat and the worker that call it."""

    def __init__(self, receiver):
        self.url = receiver.url
        self.receiver = receiver
        self.client = Client(callers=2, user_agent="test", egress=EGRESS)

    @property
    def paths(self):
        return [call.path for call in self.receiver.calls]

    def work(self):
        """Claim what is due and call it; return the claim."""
        claim = claim_due()
        self.call(self.start(claim))
        return claim

    def start(self, claim=None):
        return start_attempts([(item.delivery_id, item.token) for item in (claim or claim_due()).held])

    def call(self, batch):
        record_outcomes([call_url(call, client=self.client, timeout_seconds=5) for call in batch.started])


@pytest.fixture
def hook(receiver):
    return Hook(receiver)


def row_of(timer):
    return PeriodicTask.objects.get(timer=timer)


def schedule_of(timer):
    return row_of(timer).scheduler


def promised(timer):
    return [one.state for one in Delivery.objects.promised().filter(timer=timer).order_by("number")]


def page_of(schedule, **changes):
    """What the admin's page of a schedule sends, with changes."""
    if isinstance(schedule, ClockedSchedule):
        return clocked_form(changes["clocked_time"])
    names = ["every", "period"]
    if isinstance(schedule, CrontabSchedule):
        names = ["minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"]
    fields = {name: str(getattr(schedule, name)) for name in names}
    return fields | changes | {"periodictask_set-TOTAL_FORMS": "0", "periodictask_set-INITIAL_FORMS": "0"}


def settled(timer):
    """Check that the rows agree: a sweep has nothing to do."""
    before = list(Delivery.objects.order_by("pk").values()), PeriodicTask.objects.values().get(timer=timer)
    sweep()
    after = list(Delivery.objects.order_by("pk").values()), PeriodicTask.objects.values().get(timer=timer)
    assert after == before


# Disabling, enabling


@kinds
@through(DISABLE)
def test_disabling_pauses(recurring, admin_client, hook, kind, door):
    timer = recurring(kind, hook.url(), due=True)
    door(row_of(timer), admin_client)
    assert promised(timer) == [State.PAUSED]
    assert (hook.work().held, hook.paths) == ([], [])
    settled(timer)


@kinds
def test_bare_disabling_pauses(recurring, hook, kind):
    timer = recurring(kind, hook.url(), due=True)
    PeriodicTask.objects.update(enabled=False)
    claim = hook.work()
    assert (claim.held, claim.disputed) == ([], [timer.periodic_task_id])
    sweep()
    assert promised(timer) == [State.PAUSED]
    assert hook.paths == []


@kinds
@through(ENABLE)
def test_enabling_resumes_and_the_timer_goes_on(recurring, admin_client, hook, kind, door):
    timer = recurring(kind, hook.url("/hook"), due=True)
    services.pause(timer.pk)
    door(row_of(timer), admin_client)
    hook.work()
    assert hook.paths == ["/hook"]
    assert promised(timer) == [State.SUCCEEDED, State.SCHEDULED]
    task = row_of(timer)
    assert (task.enabled, task.total_run_count) == (True, 1)
    settled(timer)


@kinds
def test_bare_enabling_resumes(recurring, kind):
    timer = recurring(kind)
    services.pause(timer.pk)
    bare(row_of(timer), enabled=True)
    assert promised(timer) == [State.SCHEDULED]


# Deleting


DELETE = {
    "admin page": lambda row, client: post(client, address_of(row, "delete"), {"post": "yes"}),
    "admin action": lambda row, client: post(
        client,
        address_of(row).split(str(row.pk))[0],
        {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"},
    ),
    "delete": lambda row, client: row.delete(),
    "delete of a queryset": lambda row, client: type(row).objects.filter(pk=row.pk).delete(),
}


@kinds
@through(DELETE)
def test_deleting_the_task_cancels(recurring, admin_client, hook, kind, door):
    timer = recurring(kind, hook.url(), due=True)
    door(row_of(timer), admin_client)
    is_cancelled(timer, hook)


@kinds
@through(DELETE)
def test_deleting_its_schedule_cancels(recurring, admin_client, hook, kind, door):
    timer = recurring(kind, hook.url(), due=True)
    door(schedule_of(timer), admin_client)
    is_cancelled(timer, hook)


def is_cancelled(timer, hook):
    assert not PeriodicTask.objects.exists()
    assert Timer.objects.get(pk=timer.pk).periodic_task is None
    assert promised(timer) == [State.CANCELLED]
    assert (hook.work().held, hook.paths) == ([], [])


def test_deleting_during_a_call_promises_nothing_more(recurring, hook):
    timer = recurring("interval", hook.url(), due=True)
    batch = hook.start()
    row_of(timer).delete()
    hook.call(batch)
    assert len(hook.paths) == 1
    assert promised(timer) == [State.CANCELLED]


# Running


@kinds
def test_run_selected_calls_now_and_keeps_the_promise(recurring, admin_client, hook, kind):
    timer = recurring(kind, hook.url())
    act(admin_client, "run_tasks", row_of(timer))
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer) == [State.SCHEDULED]
    assert Delivery.objects.get(timer=timer, extra=True).state == State.SUCCEEDED
    assert row_of(timer).total_run_count == 0
    settled(timer)


def test_actions_on_all_kinds_at_once(recurring, make_timer, admin_client):
    timers = [make_timer(), *(recurring(kind) for kind in KINDS)]
    rows = [row_of(timer) for timer in timers]
    for action, state in [
        ("disable_tasks", State.PAUSED),
        ("enable_tasks", State.SCHEDULED),
        ("toggle_tasks", State.PAUSED),
        ("toggle_tasks", State.SCHEDULED),
    ]:
        act(admin_client, action, *rows)
        assert [promised(timer) for timer in timers] == [[state]] * 4
        sweep()
    act(admin_client, "delete_selected", *rows, post="yes")
    assert [promised(timer) for timer in timers] == [[State.CANCELLED]] * 4


# Another schedule: in the row of the schedule, or another row


WRITE = {
    "admin page": lambda schedule, client, **fields: post(client, address_of(schedule), page_of(schedule, **fields)),
    "save": lambda schedule, client, **fields: saved(schedule, **fields),
    "update": lambda schedule, client, **fields: bare(schedule, **fields),
}
NONE = dict.fromkeys(("interval", "crontab", "clocked"))
REPOINT = {
    "admin form": lambda task, client, **fields: post(
        client,
        address_of(task),
        form(task, **dict.fromkeys(NONE, "")) | {name: row.pk for name, row in fields.items()},
    ),
    "save": lambda task, client, **fields: saved(task, **NONE | fields, one_off="clocked" in fields),
    "update": lambda task, client, **fields: bare(task, **NONE | fields),
}
OTHER = {
    "interval": lambda: IntervalSchedule.objects.create(every=5, period="minutes"),
    "crontab": lambda: CrontabSchedule.objects.create(minute="30", hour="7,19", timezone="Asia/Tokyo"),
}


def follows_interval(timer, seconds):
    timer.refresh_from_db()
    assert (timer.cron, timer.timezone, timer.every_seconds) == ("", "", seconds)
    latest = Delivery.objects.promised().filter(timer=timer).latest("number")
    assert abs(latest.due_at - timezone.now() - timedelta(seconds=seconds)) < timedelta(seconds=10)
    shows(timer, "interval")


def follows_cron(timer, cron, zone):
    timer.refresh_from_db()
    assert (timer.cron, timer.timezone, timer.every_seconds) == (cron, zone, None)
    latest = Delivery.objects.promised().filter(timer=timer).latest("number")
    assert latest.due_at == Recurrence(cron=cron, timezone=zone).next_after(timezone.now())
    shows(timer, "crontab")


def shows(timer, what):
    task = row_of(timer)
    given = [name for name in ("interval", "crontab", "solar", "clocked") if getattr(task, f"{name}_id") is not None]
    assert (given, task.one_off) == ([what], what == "clocked")
    *earlier, latest = promised(timer)
    assert earlier == [State.CANCELLED] * len(earlier)
    assert latest == State.SCHEDULED
    settled(timer)


@through(WRITE)
def test_another_crontab_in_the_row_is_followed(recurring, admin_client, door):
    timer = recurring("crontab")
    door(schedule_of(timer), admin_client, minute="15,45", hour="6", timezone="Asia/Tokyo")
    follows_cron(timer, "15,45 6 * * *", "Asia/Tokyo")


@through(WRITE)
def test_another_interval_in_the_row_is_followed(recurring, admin_client, hook, door):
    timer = recurring("interval", hook.url())
    door(schedule_of(timer), admin_client, every=90, period="seconds")
    follows_interval(timer, 90)
    put_back(timer)
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer)[-2:] == [State.SUCCEEDED, State.SCHEDULED]


@through(WRITE)
def test_nearly_the_same_interval_is_another_one(recurring, admin_client, door):
    timer = recurring(every(86_401))
    door(schedule_of(timer), admin_client, every=1, period="days")
    follows_interval(timer, 86_400)


@through(WRITE)
def test_moving_the_clocked_row_moves_the_next_call_and_the_schedule_goes_on(
    recurring, admin_client, hook, delivery_of, door
):
    timer = recurring("clocked", hook.url())
    regular = delivery_of(timer).due_at
    moment = soon(seconds=-5)
    door(schedule_of(timer), admin_client, clocked_time=moment)
    assert delivery_of(timer).due_at == moment
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer) == [State.CANCELLED, State.SUCCEEDED, State.SCHEDULED]
    assert delivery_of(timer).due_at == regular
    assert schedule_of(timer).clocked_time == regular
    settled(timer)


@kinds
@through(REPOINT)
@each("other", OTHER)
def test_another_schedule_row_is_followed(recurring, admin_client, kind, door, other):
    timer = recurring(kind)
    door(row_of(timer), admin_client, **{other: OTHER[other]()})
    follows_interval(timer, 300) if other == "interval" else follows_cron(timer, "30 7,19 * * *", "Asia/Tokyo")


@each("kind", ["crontab", "interval"])
@through(REPOINT)
def test_clocked_row_makes_a_timer_that_recurs_one_that_is_called_once(recurring, admin_client, hook, kind, door):
    timer = recurring(kind, hook.url(), max_occurrences=5)
    clocked = ClockedSchedule.objects.create(clocked_time=soon(hours=5))
    door(row_of(timer), admin_client, clocked=clocked)
    timer.refresh_from_db()
    assert (timer.recurring, timer.max_occurrences) == (False, None)
    assert Delivery.objects.open().get(timer=timer).due_at == clocked.clocked_time
    shows(timer, "clocked")
    put_back(timer)
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer) == [State.CANCELLED, State.SUCCEEDED]
    assert not row_of(timer).enabled


@through(REPOINT)
@each("other", OTHER)
def test_one_shot_that_is_given_a_schedule_recurs(make_timer, admin_client, hook, door, other):
    timer = make_timer(hook.url(), delay_seconds=600)
    door(row_of(timer), admin_client, **{other: OTHER[other]()})
    follows_interval(timer, 300) if other == "interval" else follows_cron(timer, "30 7,19 * * *", "Asia/Tokyo")
    put_back(timer)
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer) == [State.CANCELLED, State.SUCCEEDED, State.SCHEDULED]


@through(WRITE)
def test_timer_that_is_paused_stays_so_with_another_schedule(recurring, admin_client, door):
    timer = recurring("interval")
    services.pause(timer.pk)
    door(schedule_of(timer), admin_client, every=2)
    assert promised(timer) == [State.CANCELLED, State.PAUSED]
    settled(timer)


@through(WRITE)
def test_another_schedule_during_a_call_lets_it_land(recurring, admin_client, hook, door):
    timer = recurring("interval", hook.url(), due=True)
    batch = hook.start()
    door(schedule_of(timer), admin_client, every=2)
    hook.call(batch)
    assert len(hook.paths) == 1
    assert promised(timer) == [State.CANCELLED, State.SCHEDULED]
    settled(timer)


@through(WRITE)
def test_bounds_of_the_timer_outlast_its_schedule(recurring, delivery_of, admin_client, door):
    starts_at = timezone.now() + timedelta(days=3)
    timer = recurring(Recurrence(every_seconds=60, starts_at=starts_at), max_occurrences=7)
    door(schedule_of(timer), admin_client, every=2)
    timer.refresh_from_db()
    assert (timer.every_seconds, timer.starts_at, timer.max_occurrences) == (120, starts_at, 7)
    assert delivery_of(timer).due_at == starts_at


@through(WRITE)
def test_first_moment_of_an_interval_does_not_hold_another_schedule_back(recurring, delivery_of, admin_client, door):
    timer = recurring(every(86_400))
    door(schedule_of(timer), admin_client, every=1, period="minutes")
    follows_interval(timer, 60)


@through(WRITE)
def test_crontab_in_other_words_is_the_same(recurring, admin_client, door):
    timer = recurring(Recurrence(cron="0 9 * * 1-5"))
    before = list(Delivery.objects.values())
    door(schedule_of(timer), admin_client, day_of_week="mon-fri")
    assert list(Delivery.objects.values()) == before
    assert schedule_of(timer).day_of_week == "mon-fri"
    settled(timer)


def test_saving_what_is_there_changes_nothing(recurring, admin_client):
    for kind in KINDS:
        timer = recurring(kind)
        before = list(Delivery.objects.values()), list(Timer.objects.values())
        task, schedule = row_of(timer), schedule_of(timer)
        fields = {"clocked_time": schedule.clocked_time} if kind == "clocked" else {}
        post(admin_client, address_of(task), form(task))
        post(admin_client, address_of(schedule), page_of(schedule, **fields))
        saved(task)
        saved(schedule)
        assert (list(Delivery.objects.values()), list(Timer.objects.values())) == before


@through(WRITE)
@each("kind", ["crontab", "interval"])
def test_schedule_that_timers_share_stays_shared(recurring, make_timer, admin_client, kind, door):
    shared = OTHER[kind]()
    timers = [recurring("crontab"), recurring("interval"), make_timer()]
    for timer in timers:
        saved(row_of(timer), **NONE | {kind: shared}, one_off=False)
    own = PeriodicTask.objects.create(name="own", task="own.task", **{kind: shared})
    change = {"hour": "8"} if kind == "crontab" else {"every": 7}
    door(type(shared).objects.get(pk=shared.pk), admin_client, **change)
    for timer in timers:
        follows_cron(timer, "30 8 * * *", "Asia/Tokyo") if kind == "crontab" else follows_interval(timer, 420)
        assert schedule_of(timer) == shared
    assert PeriodicTask.objects.get(pk=own.pk).scheduler == shared


def test_what_somebody_else_writes_meanwhile_is_kept(recurring, monkeypatch):
    timer = recurring("interval")
    lock = states.lock

    def lock_late(ids):
        Timer.objects.update(name="by the API")
        return lock(ids)

    IntervalSchedule.objects.update(every=2)
    monkeypatch.setattr(states, "lock", lock_late)
    services.obey([timer.periodic_task_id])
    timer.refresh_from_db()
    assert (timer.name, timer.every_seconds) == ("by the API", 7200)


# What a timer cannot go by


def solar():
    return SolarSchedule.objects.create(event="sunset", latitude=52, longitude=13)


ODD_TASKS = {
    "no schedule": lambda: NONE,
    "by the sun": lambda: NONE | {"solar": solar()},
    "by the sun as well": lambda: {"solar": solar()},
}
ODD_CRONTABS = {
    "banana": {"minute": "banana"},
    "empty": {"hour": ""},
    "out of range": {"hour": "25"},
    "step of none": {"minute": "*/0"},
    "never": {"day_of_month": "31", "month_of_year": "2"},
    "both days": {"day_of_month": "13", "day_of_week": "5"},
}
ODD_INTERVALS = {
    "none": {"every": 0},
    "negative": {"every": -5},
    "shorter than a second": {"every": 5000, "period": "microseconds"},
    "unknown period": {"period": "fortnights"},
    "beyond all time": {"every": 2_147_483_647, "period": "days"},
}
SAID = "foreign_schedule_refused"


def refused(timer, caplog, before, *, more_sweeps=2):
    """Check that the timer kept its own schedule, that its row shows it, and that it was said once."""
    for _ in range(more_sweeps):
        sweep()
    assert [record.getMessage().split()[0] for record in caplog.records if SAID in record.getMessage()] == [SAID]
    assert list(Timer.objects.values()) == before
    assert promised(timer) == [State.SCHEDULED]
    settled(timer)


@kinds
@through(ODD_TASKS)
def test_row_without_a_usable_schedule_is_put_back(recurring, caplog, kind, door):
    timer = recurring(kind)
    before = list(Timer.objects.values())
    bare(row_of(timer), **door())
    refused(timer, caplog, before)
    shows(timer, kind)


@through(ODD_TASKS)
def test_one_shots_row_without_a_usable_schedule_is_put_back(make_timer, hook, caplog, door):
    timer = make_timer(hook.url())
    due_at = timer.deliveries.get().due_at
    before = list(Timer.objects.values())
    bare(row_of(timer), **door())
    refused(timer, caplog, before)
    shows(timer, "clocked")
    assert schedule_of(timer).clocked_time == due_at
    put_back(timer)
    hook.work()
    assert len(hook.paths) == 1


@kinds
def test_row_of_the_sun_that_is_saved_is_put_back(recurring, caplog, kind):
    timer = recurring(kind)
    before = list(Timer.objects.values())
    saved(row_of(timer), **NONE, solar=solar(), one_off=False)
    refused(timer, caplog, before)
    shows(timer, kind)


@through(ODD_CRONTABS)
@each("write", [saved, bare], ids=["save", "update"])
def test_crontab_that_means_nothing_is_put_back(recurring, hook, caplog, door, write):
    timer = recurring("crontab", hook.url())
    before = list(Timer.objects.values())
    write(schedule_of(timer), **door)
    refused(timer, caplog, before)
    shows(timer, "crontab")
    assert (schedule_of(timer).hour, schedule_of(timer).minute) == ("9", "0")
    put_back(timer)
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer) == [State.SUCCEEDED, State.SCHEDULED]


@through(ODD_INTERVALS)
@each("write", [saved, bare], ids=["save", "update"])
def test_interval_that_means_nothing_is_put_back(recurring, caplog, door, write):
    timer = recurring("interval")
    before = list(Timer.objects.values())
    write(schedule_of(timer), **door)
    refused(timer, caplog, before)
    shows(timer, "interval")
    assert (schedule_of(timer).every, schedule_of(timer).period) == (1, "hours")


def test_zone_that_is_none_is_put_back(recurring, caplog, sql):
    timer = recurring("crontab")
    before = list(Timer.objects.values())
    sql("UPDATE django_celery_beat_crontabschedule SET timezone = 'Mars/Olympus'")
    sweep()
    refused(timer, caplog, before)
    assert str(schedule_of(timer).timezone) == "Europe/Berlin"


def test_claim_does_not_mind_a_crontab_that_means_nothing(recurring, hook):
    timer = recurring("crontab", hook.url(), due=True)
    CrontabSchedule.objects.update(minute="banana")
    hook.work()
    assert len(hook.paths) == 1
    assert promised(timer) == [State.SUCCEEDED, State.SCHEDULED]


def test_sweep_goes_on_to_the_others(recurring):
    odd, timer = recurring("crontab"), recurring("interval")
    CrontabSchedule.objects.update(minute="banana")
    IntervalSchedule.objects.update(every=3)
    sweep()
    assert promised(odd) == [State.SCHEDULED]
    follows_interval(timer, 3 * 3600)


def test_refused_schedule_of_a_paused_timer_leaves_it_paused(recurring):
    timer = recurring("crontab")
    services.pause(timer.pk)
    bare(schedule_of(timer), minute="banana")
    assert promised(timer) == [State.PAUSED]
    bare(row_of(timer), enabled=True)
    assert promised(timer) == [State.SCHEDULED]


def test_refused_schedule_that_others_use_is_left_to_them(recurring, caplog):
    timer = recurring("crontab")
    own = PeriodicTask.objects.create(name="own", task="own.task", crontab=schedule_of(timer))
    bare(own.crontab, day_of_month="13", day_of_week="5")
    shows(timer, "crontab")
    assert schedule_of(timer).day_of_week == "*"
    own.refresh_from_db()
    assert own.crontab.day_of_week == "5"


def test_schedule_without_a_moment_before_the_end_is_refused(recurring, caplog):
    timer = recurring(every(60, ends_at=timezone.now() + timedelta(hours=1)))
    before = list(Timer.objects.values())
    bare(schedule_of(timer), every=2, period="days")
    refused(timer, caplog, before)
    assert "no moment" in caplog.text


def test_of_several_schedules_the_one_that_celery_goes_by_holds(recurring, caplog):
    timer = recurring("crontab")
    bare(row_of(timer), interval=OTHER["interval"]())
    follows_interval(timer, 300)
    before = list(Timer.objects.values())
    count = len(promised(timer))
    bare(row_of(timer), crontab=OTHER["crontab"]())
    assert list(Timer.objects.values()) == before
    assert len(promised(timer)) == count
    assert SAID in caplog.text
    shows(timer, "interval")


# The same in the admin's forms: refused, with a sentence


def error_of(client, row, data):
    answer = client.post(address_of(row), data)
    assert answer.status_code == 200
    return " ".join(str(text) for texts in answer.context["errors"] for text in texts)


@kinds
@each("sun", [False, True])
def test_form_refuses_a_row_without_a_schedule(recurring, admin_client, kind, sun):
    timer = recurring(kind)
    before = PeriodicTask.objects.values().get(timer=timer)
    data = form(row_of(timer), **dict.fromkeys(NONE, "")) | ({"solar": solar().pk} if sun else {})
    assert "must be set" in error_of(admin_client, row_of(timer), data)
    assert PeriodicTask.objects.values().get(timer=timer) == before


def test_form_refuses_two_schedules(recurring, admin_client):
    timer = recurring("crontab")
    data = form(row_of(timer), interval=OTHER["interval"]().pk)
    assert "Only one of" in error_of(admin_client, row_of(timer), data)


def test_form_refuses_a_crontab_that_cron_cannot_say(recurring, admin_client):
    timer = recurring("interval")
    crontab = CrontabSchedule.objects.create(day_of_month="13", day_of_week="5")
    data = form(row_of(timer), interval="", crontab=crontab.pk)
    assert "must both match" in error_of(admin_client, row_of(timer), data)
    follows_interval(timer, 3600)


def test_form_refuses_an_interval_under_a_second(recurring, admin_client):
    timer = recurring("crontab")
    interval = IntervalSchedule.objects.create(every=10, period="microseconds")
    data = form(row_of(timer), crontab="", interval=interval.pk)
    assert "one second at least" in error_of(admin_client, row_of(timer), data)


def test_pages_of_schedules_refuse_what_their_timers_cannot_go_by(recurring, admin_client):
    crontab, interval = schedule_of(recurring("crontab")), schedule_of(recurring("interval"))
    both = page_of(crontab, day_of_month="13", day_of_week="5")
    assert "must both match" in error_of(admin_client, crontab, both)
    short = page_of(interval, period="microseconds")
    assert "one second at least" in error_of(admin_client, interval, short)
    assert not Delivery.objects.filter(state=State.CANCELLED).exists()


def test_pages_of_an_operators_own_schedules_are_as_ever(admin_client):
    crontab = CrontabSchedule.objects.create()
    interval = IntervalSchedule.objects.create(every=1, period="days")
    PeriodicTask.objects.create(name="own", task="own.task", crontab=crontab)
    post(admin_client, address_of(crontab), page_of(crontab, day_of_month="13", day_of_week="5"))
    post(admin_client, address_of(interval), page_of(interval, period="microseconds"))
    post(admin_client, address_of(crontab).split(str(crontab.pk))[0] + "add/", page_of(crontab, minute="7"))
    assert CrontabSchedule.objects.filter(minute="7").exists()


# Timers that have ended


@pytest.fixture
def ended(recurring, hook):
    """Return a function that makes a timer that recurred and has ended."""

    def make(kind, how):
        if how == "cancelled":
            timer = recurring(kind)
            services.cancel(timer.pk)
            return timer
        timer = recurring(kind, hook.url(), max_occurrences=1, due=True)
        hook.work()
        assert promised(timer) == [State.SUCCEEDED]
        return timer

    return make


hows = each("how", ["cancelled", "ran out"])


def stays_ended(timer):
    assert promised(timer) in ([State.SUCCEEDED], [State.CANCELLED])
    assert not row_of(timer).enabled
    assert claim_due().held == []


@kinds
@hows
def test_ended_timer_is_not_enabled(ended, admin_client, kind, how):
    timer = ended(kind, how)
    assert "has ended" in error_of(admin_client, row_of(timer), form(row_of(timer), enabled="on"))
    for action in ("enable_tasks", "toggle_tasks"):
        act(admin_client, action, row_of(timer))
    with pytest.raises(services.TimerEndedError), transaction.atomic():
        saved(row_of(timer), enabled=True)
    stays_ended(timer)
    bare(row_of(timer), enabled=True)
    stays_ended(timer)
    settled(timer)


@kinds
@hows
@each("other", OTHER)
def test_ended_timer_takes_no_other_schedule_row(ended, admin_client, kind, how, other):
    timer = ended(kind, how)
    schedule = OTHER[other]()
    data = form(row_of(timer), **dict.fromkeys(NONE, "")) | {other: schedule.pk}
    assert "has ended" in error_of(admin_client, row_of(timer), data)
    with pytest.raises(services.TimerEndedError), transaction.atomic():
        saved(row_of(timer), **NONE | {other: schedule}, one_off=False)
    bare(row_of(timer), **NONE | {other: schedule})
    stays_ended(timer)
    settled(timer)


CHANGES = {
    "crontab": {"hour": "7"},
    "interval": {"every": 5},
    "clocked": {"clocked_time": soon(hours=3)},
}


@kinds
@hows
def test_ended_timers_own_schedule_is_not_changed(ended, admin_client, caplog, kind, how):
    timer = ended(kind, how)
    change = CHANGES[kind]
    assert "has ended" in error_of(admin_client, schedule_of(timer), page_of(schedule_of(timer), **change))
    with pytest.raises(services.TimerEndedError), transaction.atomic():
        saved(schedule_of(timer), **change)
    bare(schedule_of(timer), **change)
    stays_ended(timer)
    # Nor is the sweep busy with it for ever.
    caplog.clear()
    settled(timer)
    assert "foreign_edits_obeyed" not in caplog.text


@hows
def test_ended_timer_does_not_hold_the_schedule_of_others(ended, recurring, admin_client, how):
    done, timer = ended("crontab", how), recurring("interval")
    shared = schedule_of(done)
    saved(row_of(timer), interval=None, crontab=shared)
    post(admin_client, address_of(shared), page_of(shared, hour="7"))
    follows_cron(timer, "0 7 * * *", "Europe/Berlin")
    stays_ended(done)


@kinds
def test_run_selected_does_not_call_an_ended_timer(ended, admin_client, hook, kind):
    timer = ended(kind, "cancelled")
    Timer.objects.update(web_url=hook.url("/again"))
    act(admin_client, "run_tasks", row_of(timer))
    hook.work()
    assert hook.paths == []
    stays_ended(timer)
    settled(timer)
