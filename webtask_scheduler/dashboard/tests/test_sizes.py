"""What a page weighs when it is full: its HTML, its style sheets, its scripts, and how many requests it takes."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.db import transaction
from django.utils import timezone

from webtask_scheduler.access import audit
from webtask_scheduler.dashboard import dead as dead_letters
from webtask_scheduler.dashboard import history, overview, queries, rows
from webtask_scheduler.dashboard.tests.test_operators import minute
from webtask_scheduler.dashboard.urls import urlpatterns
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.api.reading import read_timer
from webtask_scheduler.scheduler.models import Attempt, BulkOperation, Delivery, HostHour, State, Timer, new_id
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.tests.support.api import send

pytestmark = pytest.mark.django_db

# Of HTML, scripts and style sheets, in bytes before compression; and requests, with the icon.
KB = 1024
MOST = (60 * KB, 65 * KB, 18 * KB, 6)
SHEETS = [
    f"dashboard/{name}.css" for name in ("dash", "rows", "filters", "figures", "charts", "facts", "calls", "forms")
]
_FILE = re.compile(r'<(?:link rel="(?:stylesheet|icon)"|script)[^>]*? (?:href|src)="/static/([^"]+)"')
_CLASSES = re.compile(r'class="([^"{]+)"')
_DECLARATION = re.compile(r"[\w-]+\s*:[^{};]*;")
_SELECTED = re.compile(r"\.([a-z][a-z-]*)")


def file_of(name):
    return Path(finders.find(name)).read_text(encoding="utf-8")


def styled(name):
    """Return the classes that a style sheet has rules for."""
    return set(_SELECTED.findall(_DECLARATION.sub("", re.sub(r"/\*.*?\*/", "", file_of(name), flags=re.DOTALL))))


@pytest.fixture
def full(client):
    """Return the parts of addresses, of a service whose pages have as much to show as they show."""
    now = timezone.now()
    # Names, addresses and labels of a length that is common, in letters that take two bytes.
    given = [
        {
            "web_url": f"https://billing.example.com/v2/invoices/{number:06}/remind?channel=mail",
            "name": f"تذكير بدفع الفاتورة الشهرية رقم {number:06} لفرع المنطقة الوسطى",
            "labels": {"team": "billing", "region": "eu-central", "tier": "enterprise"},
            "cron": "*/15 9-17 * * MON-FRI",
            "timezone": "Europe/Berlin",
        }
        for number in range(2 * rows.PAGE_ROWS)
    ]
    stored = services.schedule([read_timer(one) for one in given])
    of_one, *others = (one.timer_id for one in stored)
    # One with a history, and as many dead letters as there are rows.
    old = [
        Delivery(id=new_id(), timer_id=of_one, number=2 + number, occurrence=2 + number, state=State.SUCCEEDED)
        for number in range(60)
    ]
    for number, one in enumerate(old):
        one.due_at = one.next_attempt_at = now - timedelta(minutes=61 - number)
        one.attempts, one.started_at, one.finished_at = 1, one.due_at, one.due_at
    Delivery.objects.bulk_create(old)
    dead = Delivery.objects.filter(timer__in=others[: rows.PAGE_ROWS])
    dead.update(state=State.FAILED, attempts=1, started_at=now, finished_at=now)
    Attempt.objects.bulk_create(
        Attempt(delivery=one, number=1, meant_for=now, started_at=now, status_code=503, error="status")
        for one in [*old, *dead]
    )
    # As many groups of them as there are on a page, each over the whole time that is drawn.
    groups = {
        Delivery(id=new_id(), timer_id=others[-1], number=2 + number, occurrence=1, state=State.FAILED, extra=True): (
            500 + number // dead_letters.COLUMNS
        )
        for number in range(dead_letters.COLUMNS * dead_letters.GROUPS_SHOWN)
    }
    flow = Timer.objects.get(pk=others[-1]).flow
    for number, one in enumerate(groups):
        one.flow, one.attempts = flow, 1
        one.started_at = one.finished_at = now - timedelta(hours=number % dead_letters.COLUMNS)
        one.due_at = one.next_attempt_at = one.started_at
    Delivery.objects.bulk_create(groups)
    Attempt.objects.bulk_create(
        Attempt(delivery=one, number=1, meant_for=one.due_at, started_at=one.due_at, status_code=code, error="status")
        for one, code in groups.items()
    )
    # As many hosts as are listed, and seconds with very many.
    hour = now.replace(minute=0, second=0, microsecond=0)
    HostHour.objects.bulk_create(
        HostHour(
            hour=hour, host=f"hooks-{number:02}.billing.example.com", process="a", batch=new_id(), calls=123_456,
            failed=12_345 * (number % 2), put_off=1234, late=[9] * 18, durations=[9] * 18,
        )
        for number in range(queries.HOSTS_MOST)
    )  # fmt: skip
    herds = [
        services.NewTimer(web_url="https://a.example/", due_at=hour + timedelta(hours=2, minutes=herd))
        for herd in range(queries.HERDS_MOST)
        for _ in range(queries.HERD_LEAST)
    ]
    services.schedule(herds)
    second = {"due_from": instant_text(herds[0].due_at), "due_to": instant_text(herds[100].due_at)}
    spread = send(client, "POST", "/timer/bulk", {"action": "spread", "filter": second, "dry_run": True})
    services.step_bulk(BulkOperation.objects.get())
    # Edits of many fields, as many as the page of a timer shows; and calls of each minute of the last hour.
    names = ("web_url", "name", "cron", "timezone", "max_occurrences", "labels")
    with transaction.atomic():
        for _ in range(history.LATEST + 1):
            before, after = (dict.fromkeys(names, f"{given[0]['web_url']}/{part}") for part in "ab")
            audit.record("timer.edited", kind="timer", of=of_one, before=before, after=after)
    for number in range(60):
        counts = {"succeeded": 1000, "failed": 20, "retried": 30, "missed": 10}
        minute(timedelta(minutes=number), first_late=[0, 0, 900, 60, 10, 0, 0, 0, number] + [0] * 9, **counts)
    overview.forget()
    bulk = send(client, "POST", "/timer/bulk", {"action": "pause", "filter": {"host": "b.example"}, "dry_run": True})
    BulkOperation.objects.filter(action="pause").update(matched=3)
    lost = Delivery.objects.filter(timer__in=others[: rows.PAGE_ROWS])[0]
    values = {"timer_id": of_one, "operation_id": bulk.json()["bulk_id"], "name": "billing.example.com", "number": "1"}
    values |= {"action": "stop", "secret_id": "1", "key_id": "1", "channel_id": "1"}
    paths = [
        "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda name: str(values[name[1]]), str(one.pattern)) for one in urlpatterns
    ]
    more = ["/hosts?sort=late", f"/operations/{spread.json()['bulk_id']}"]
    return [*paths, f"/timers/{lost.timer_id}/deliveries/{lost.number}", "/upcoming?view=week", "/nonsense", *more]


def test_list_of_all_owners_keeps_to_its_budget(client, full, django_user_model):
    Timer.objects.update(owner=django_user_model.objects.create_user("accounting@example.com", "x"))
    client.force_login(django_user_model.objects.create_superuser("root@example.com", "x"))
    sizes = {path: len(client.get(path, headers={"accept-language": "ar"}).content) for path in ("/timers", "/")}
    assert all(size <= MOST[0] for size in sizes.values()), sizes
    assert b"accounting@example.com" in client.get("/timers").content


def test_dead_letters_of_many_causes_keep_to_their_budget(client, full, admin_user):
    client.force_login(admin_user)
    page = client.get("/dead", headers={"accept-language": "ar"}).content
    assert page.count(b"<details") >= 2 * dead_letters.GROUPS_SHOWN
    assert page.count(b"h.8v-") >= dead_letters.COLUMNS * (dead_letters.GROUPS_SHOWN - 1)
    assert len(page) <= MOST[0]


def test_every_page_keeps_to_its_budget(client, full):
    weighed, over, bare = [], [], []
    for path in full:
        for language in ("en", "ar"):
            answer = client.get(path, headers={"accept": "text/html", "accept-language": language})
            if answer.status_code not in (200, 404) or answer["Content-Type"] != "text/html; charset=utf-8":
                # What is done by a form alone, or a file.
                continue
            text = answer.content.decode()
            files = _FILE.findall(text)
            sheets = [name for name in files if name.endswith(".css")]
            sizes = (
                len(answer.content),
                sum(len(file_of(name).encode()) for name in files if name.endswith(".js")),
                sum(len(file_of(name).encode()) for name in sheets),
                1 + len(files),
            )
            weighed.append(("{:>7} {:>7} {:>7} {:>2}  {} {}").format(*sizes, language, path))
            if any(size > most for size, most in zip(sizes, MOST, strict=True)):
                over.append(weighed[-1])
            if sheets:
                used = {name for value in _CLASSES.findall(text) for name in value.split()}
                everywhere = set().union(*map(styled, SHEETS))
                bare += [(path, name) for name in used & everywhere - set().union(*map(styled, sheets))]
    print("\n   HTML  script   style  requests", *weighed, sep="\n")
    assert len(weighed) > 2 * 18
    assert not over, over
    # A page links the style sheets of what it shows.
    assert not bare, bare
