"""Finds every page of the dashboard and the admin, visits each, and asks the database how it answers the statements.

Pages are found, not listed: those of the dashboard by its URL patterns, those of the admin by its registry, and
filters, orders, tabs and fragments by the links that the pages show. What only a form leads to is in QUERIES, and what
stands for the parts of an address is in `_samples`: a new page needs a line there at the most.
"""

import html
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from django.contrib import admin
from django.contrib.admin.templatetags.admin_urls import admin_urlname
from django.db import connection, models
from django.test import Client
from django.urls import NoReverseMatch, URLPattern, reverse
from django.utils import timezone

from webtask_scheduler.dashboard import urls as dashboard
from webtask_scheduler.scheduler.models import BulkOperation, Delivery, NotificationChannel, State, Timer

DASHBOARD, ADMIN = "dashboard", "admin"
# Links of one page to itself with another query: more are more of the same.
LINKS_MOST = 30
# Files of up to 100,000 timers, with a longest time of their own (dashboard/exporting.py).
DOWNLOADS = ("export-csv", "export-jsonl", "export-yaml")
TABLES = ("scheduler_timer", "scheduler_delivery", "scheduler_attempt")
_SCAN = re.compile(rf"Seq Scan on ({'|'.join(TABLES)})\b")
_LINK = re.compile(r"""\b(?:href|data-live)="([^"#]+)""")
# The fields of filters; a form for a change has others, with ids.
_FIELD = re.compile(r'<input type="text" name="(\w+)" value')
_LAST_PAGE = re.compile(r"\?p=(\d+)")

# What no timer of `crowd` fits, by no index: it is looked for until the time is up, or through all that there are.
RARE = ("nothing-like-this", "has_callback=true")

# What is typed into the forms of a page, by its name.
QUERIES: dict[str, Sequence[str]] = {
    "dashboard:timers": (
        "name=Invoice",
        "name=nothing-like-this",
        "host=shop.example",
        "host=nothing.example",
        "label=team=billing",
        "label=order=800",
        "url_prefix=https://shop.example/",
        "url_prefix=https://nothing.example/",
        "status=failed&host=shop.example",
        "status=failed&label=team=billing",
        "status=paused&name=Invoice",
        "status=scheduled&due_to={past}",
        "due_from={past}&due_to={now}",
        "recurring=true&name=Reminder",
        "has_callback=true",
        "has_callback=false",
        "has_callback=true&status=failed",
        "has_callback=true&host=shop.example",
        "q=Nightly",
        "q={timer_id}",
        "q=team=billing",
    ),
}
# The same for who sees all timers; each owner of `crowd` has one timer in 25.
QUERIES_OF_ALL: dict[str, Sequence[str]] = {
    "dashboard:timers": (
        "owner=person-4@example.com",
        "owner=person-4@example.com&status=failed",
        "owner=person-4@example.com&label=team=billing",
        "owner=person-1@example.com&name=nothing-like-this",
        "owner=person-1@example.com&due_from={past}&due_to={now}",
        "changed_by={operation_id}",
        "changed_by={operation_id}&status=failed",
        "changed_by={operation_id}&owner=person-1@example.com&status=scheduled",
    ),
}
# The same for every list of the admin that can be searched, and for every field of its filters.
SEARCHES = ("{timer_id}", "{timer_id:.10}", "shop.example", "Invoice 4", "nothing-like-this")
FIELDS = ("shop.example", "nothing.example")
ADMIN_QUERIES = ("status=failed&host=shop.example", "q=Invoice&status=scheduled", "q=shop.example&due=past-day")


@dataclass(slots=True)
class Visit:
    """One page as one person sees it, and what it asked of the database."""

    of: str
    # The page without its query, with samples of the parts of its address named.
    page: str
    path: str
    who: str = ""
    status: int = 0
    size: int = 0
    statements: int = 0
    slowest_ms: float = 0.0
    # Statements whose plan reads a whole table of TABLES.
    scans: list[str] = field(default_factory=list)
    # Whether it looks on and on for what is rare: it says how far it came, or looked through all that an owner has.
    is_short: bool = False


class Visitor:
    """A person who is logged in, and looks at pages within this process."""

    def __init__(self, user: Any) -> None:
        self.name = "superuser" if user.is_superuser else "person"
        self.sees_all = user.is_superuser
        self.client = Client(headers={"host": "127.0.0.1", "accept": "text/html"})
        self.client.force_login(user)
        self._seen: set[str] = set()

    @property
    def cookie(self) -> str:
        return "; ".join(f"{name}={morsel.value}" for name, morsel in self.client.cookies.items())

    def visit(self, of: str, page: str, path: str) -> Iterator[tuple[Visit, str]]:
        """Yield the visit with the page's text, unless it was made, or nobody may look at such a page by a link."""
        if path in self._seen:
            return
        self._seen.add(path)
        asked: list[tuple[str, Any, float]] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            begun = time.perf_counter()
            try:
                return execute(sql, params, many, context)
            finally:
                asked.append((sql, params, (time.perf_counter() - begun) * 1000))

        with connection.execute_wrapper(note):
            answer = self.client.get(path)
        if answer.status_code in (403, 405):
            # What is done by a form alone, or not at all.
            return
        if answer.status_code in (301, 302):
            yield from self.visit(of, page, urljoin(path, answer["Location"]))
            return
        body = b"".join(answer) if answer.streaming else answer.content
        text = body.decode(errors="replace")
        yield (
            Visit(
                of,
                page,
                path,
                self.name,
                answer.status_code,
                len(body),
                len(asked),
                max((took for *_, took in asked), default=0.0),
                [scan for sql, params, _ in asked for scan in scans_of(sql, params)],
                " data-looked" in text or any(rare in path for rare in RARE),
            ),
            text,
        )


def scans_of(sql: str, params: Any) -> list[str]:
    """Return which of TABLES a statement reads from one end to the other, each with the statement."""
    if not sql.lstrip().upper().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
        return []
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}", params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    return [f"{table}: {' '.join(sql.split())[:300]}" for table in sorted(set(_SCAN.findall(plan)))]


def visits(visitor: Visitor, *, of: Sequence[str] = (DASHBOARD, ADMIN)) -> Iterator[Visit]:
    """Visit every page once, with the queries that its links and forms lead to."""
    samples = _samples()
    if DASHBOARD in of:
        # Whoever owns no timer is shown none.
        for page, path in _dashboard(samples if visitor.sees_all else {}):
            yield from with_links(visitor, DASHBOARD, page, path, _queries(page, samples, of_all=visitor.sees_all))
    if ADMIN in of:
        for page, path in _admin(samples):
            yield from with_links(visitor, ADMIN, page, path, [])


def with_links(visitor: Visitor, of: str, page: str, path: str, queries: Sequence[str]) -> Iterator[Visit]:
    """Visit a page, what its own links lead to, and the page with these queries."""
    found = [f"{path}?{query}" for query in queries]
    for visit, text in visitor.visit(of, page, path):
        yield visit
        if "?" in path:
            continue
        links = (urljoin(path, html.unescape(link)) for link in _LINK.findall(text))
        # Fragments may have an address of their own; another page has a turn of its own.
        same = [
            link for link in links if urlsplit(link).path == urlsplit(path).path and "_changelist_filters" not in link
        ]
        found += list(dict.fromkeys(same))[:LINKS_MOST]
        if of == ADMIN:
            named = sorted(set(_FIELD.findall(text)) - {"q"}) if " " not in page else []
            found += [f"{path}?{name}={value}" for name in named for value in FIELDS]
            found += [f"{path}?p={max(map(int, pages))}" for pages in [_LAST_PAGE.findall(text)] if pages]
    for address in found:
        for visit, _ in visitor.visit(of, page, address):
            yield visit


def _samples() -> dict[str, list[Any]]:
    """Return what stands in addresses, by the name of the part: a few rows that differ."""
    timers = list(Timer.objects.order_by("-pk").values_list("pk", flat=True)[:2])
    timers += Timer.objects.exclude(cron="").order_by("-pk").values_list("pk", flat=True)[:1]
    failed = (
        Delivery.objects.filter(state=State.FAILED).order_by("-due_at").values_list("pk", "timer", "number").first()
    )
    if failed is not None:
        timers.append(failed[1])
    number = failed[2] if failed else 1
    # Whoever sees all timers sees no channels but his own.
    channels = NotificationChannel.objects.filter(owner__is_superuser=True)
    return {
        "timer_id": timers,
        "delivery_id": [failed[0]] if failed else [],
        "number": [number],
        "occurrence": [number],
        "operation_id": list(BulkOperation.objects.order_by("-pk").values_list("pk", flat=True)[:1]),
        "host": ["shop.example"],
        "channel_id": list(channels.values_list("pk", flat=True)[:1]),
    }


def _queries(page: str, samples: dict[str, list[Any]], *, of_all: bool) -> list[str]:
    now = timezone.now()
    values = {"now": _instant(now), "past": _instant(now - timedelta(days=1))}
    values |= {name: str(samples[name][-1]) for name in ("timer_id", "operation_id")}
    queries = [*QUERIES.get(page, ()), *(QUERIES_OF_ALL.get(page, ()) if of_all else ())]
    return [query.format(**values) for query in queries]


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _dashboard(samples: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    for pattern in dashboard.urlpatterns:
        if not isinstance(pattern, URLPattern) or not pattern.name or pattern.name in DOWNLOADS:
            continue
        page = f"{dashboard.app_name}:{pattern.name}"
        names = list(pattern.pattern.converters)
        if any(name not in samples for name in names):
            # What is done to a timer, by a form.
            continue
        for number in range(max((len(samples[name]) for name in names), default=1)):
            chosen = {name: samples[name][number % len(samples[name])] for name in names if samples[name]}
            with suppress(NoReverseMatch):
                yield page, reverse(page, kwargs=chosen)


def _admin(samples: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    yield "index", reverse("admin:index")
    for model, page in admin.site._registry.items():  # noqa: SLF001 - there is no other way to ask
        name = f"{model._meta.app_label}.{model._meta.model_name}"  # noqa: SLF001
        address = reverse(admin_urlname(model._meta, "changelist"))  # type: ignore[arg-type]  # noqa: SLF001
        yield name, address
        for query in _admin_queries(page, samples):
            yield name, f"{address}?{query}"
        yield f"{name} add", f"{address}add/"
        for row in _rows(model):
            for what in ("change", "delete", "history"):
                yield f"{name} {what}", reverse(admin_urlname(model._meta, what), args=[row])  # type: ignore[arg-type]  # noqa: SLF001


def _admin_queries(page: Any, samples: dict[str, list[Any]]) -> Iterator[str]:
    for number in range(1, len(page.list_display) + 1):
        yield from (f"o={number}", f"o=-{number}")
    yield from ("p=2", "all=")
    if page.search_fields:
        yield from (f"q={quote(term.format(timer_id=str(samples['timer_id'][-1])))}" for term in SEARCHES)
    if page.search_fields and page.list_filter:
        yield from ADMIN_QUERIES


def _rows(model: type[models.Model]) -> list[Any]:
    """Return the keys of a few rows that differ."""
    newest = list(model._default_manager.order_by("-pk").values_list("pk", flat=True)[:1])  # noqa: SLF001
    first = list(model._default_manager.order_by("pk").values_list("pk", flat=True)[:1])  # noqa: SLF001
    return list(dict.fromkeys(newest + first))
