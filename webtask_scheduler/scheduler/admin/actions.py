"""Actions on many timers: they say first what they would be done to, and do it when that is confirmed.

A list shows a bounded number of rows, and "select all" means these. Where more fit, whoever may change all timers may
have it done to all of them by a bulk operation.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from webtask_scheduler.scheduler import sealing, services
from webtask_scheduler.scheduler.admin.lists import FilteredChangeList, RowFilter
from webtask_scheduler.scheduler.facts import shown_number
from webtask_scheduler.scheduler.models import BulkOperation, Timer
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.services.caller import may_change_all

# Timers that the question names.
EXAMPLES = 5
# Each is a few statements, in one request.
REPLAYED_AT_ONCE = 500


class AskingAdmin:
    """A list of timers, or of rows that show them, with actions that ask first."""

    def ask(
        self,
        request: HttpRequest,
        *,
        title: str,
        timer_ids: Sequence[uuid.UUID],
        others: int = 0,
        bulk: str = "",
    ) -> HttpResponse | None:
        """Return the page that asks, or None once that is confirmed. `bulk` is the action of a bulk operation."""
        page: Any = self
        changes = page.get_changelist_instance(request) if request.POST.get("select_across") == "1" else None
        is_cut = changes is not None and bool(changes.paginator.more or getattr(changes, "more", False))
        # The page that it leads to is one more that has to be allowed.
        may = may_change_all(request.user) and request.user.has_perm("scheduler.view_bulkoperation")
        stored = bulk_filter(changes) if is_cut and bulk and may else None
        if "in_bulk" in request.POST and stored:
            return self._in_bulk(request, bulk, stored)
        if "confirmed" in request.POST:
            if is_cut:
                text = _("The list does not show all that fit: the timers that it does not show stay as they are.")
                page.message_user(request, text, messages.WARNING)
            return None
        count = len(timer_ids)
        about = ngettext("This is about %(count)s timer.", "This is about %(count)s timers.", count)
        about %= {"count": shown_number(count)}
        if others:
            more = ngettext("And about %(count)s other task.", "And about %(count)s other tasks.", others)
            about = f"{about} {more % {'count': shown_number(others)}}"
        posted = [("action", request.POST.get("action", "")), ("index", request.POST.get("index", "0"))]
        posted += [("select_across", request.POST.get("select_across", "0"))]
        posted += [(ACTION_CHECKBOX_NAME, key) for key in request.POST.getlist(ACTION_CHECKBOX_NAME)]
        context = page.admin_site.each_context(request) | {
            "title": title,
            "opts": page.opts,
            "about": about,
            "examples": examples(timer_ids),
            "unnamed": count > EXAMPLES,
            "is_cut": is_cut,
            "fields": posted,
            "button": gettext("Yes, do it"),
            "bulk": gettext("Do it to all that fit, in the background") if stored else "",
            "list_url": request.get_full_path(),
        }
        return TemplateResponse(request, "scheduler/ask_first.html", context)

    def _in_bulk(self, request: HttpRequest, action: str, stored: dict[str, Any]) -> HttpResponse:
        page: Any = self
        operation = BulkOperation(owner=request.user, everyone=True, action=action, filter=stored)  # type: ignore[misc]
        try:
            services.begin_bulk(operation)
        except ValidationError as error:
            page.message_user(request, error.messages[0], messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        page.message_user(request, _("The bulk operation has begun. This page says how far it came."), messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:scheduler_bulkoperation_change", args=[operation.pk]))

    def replay_timers(self, request: HttpRequest, timer_ids: Sequence[uuid.UUID]) -> HttpResponse | None:
        """Replay the timers that failed or were missed, when that is confirmed."""
        page: Any = self
        action = BulkOperation.Action.REPLAY
        asked = self.ask(request, title=gettext("Replay?"), timer_ids=timer_ids, bulk=action.value)
        if asked is not None:
            return asked
        if len(timer_ids) > REPLAYED_AT_ONCE:
            text = gettext("Replay at most %(most)s at once, or by a bulk operation.")
            page.message_user(request, text % {"most": shown_number(REPLAYED_AT_ONCE)}, messages.ERROR)
            return None
        done = services.replay_many_now(timer_ids)
        self.said_replayed(request, done, len(timer_ids) - done)
        return None

    def said_replayed(self, request: HttpRequest, done: int, rest: int) -> None:
        page: Any = self
        if done:
            text = ngettext("%(count)s delivery is being replayed.", "%(count)s deliveries are being replayed.", done)
            page.message_user(request, text % {"count": shown_number(done)}, messages.SUCCESS)
        if rest:
            text = ngettext(
                "%(count)s was not replayed: it did not fail and was not missed, or is being replayed already.",
                "%(count)s were not replayed: they did not fail and were not missed, or are being replayed already.",
                rest,
            )
            page.message_user(request, text % {"count": shown_number(rest)}, messages.WARNING)

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Return whether deliveries may be replayed: by those who may change what the stock admin changes of timers."""
        return bool(request.user.has_perm("django_celery_beat.change_periodictask"))


def examples(timer_ids: Sequence[uuid.UUID]) -> list[str]:
    """Return the first few timers in words."""
    found: QuerySet[Timer] = Timer.objects.filter(pk__in=timer_ids[:EXAMPLES]).only("web_url", "name")
    return [
        format_html('{} <bdi dir="ltr" class="wt-url">{}</bdi>', timer.name, sealing.shown_url(timer.web_url))
        for timer in found
    ]


def bulk_filter(changes: Any) -> dict[str, Any] | None:
    """Return the filter of a list as a bulk operation stores it; None if that has no words for it, or it is empty."""
    wanted: RowFilter | None = changes.narrowed if isinstance(changes, FilteredChangeList) else None
    if wanted is None or wanted.term:
        return None
    stored: dict[str, Any] = {}
    if wanted.states is not None:
        stored["status"] = [state.value for state in wanted.states]
    if wanted.host:
        stored["host"] = wanted.host
    instants: dict[str, datetime | None] = {"due_from": wanted.due_from, "due_to": wanted.due_to}
    stored |= {name: instant_text(at) for name, at in instants.items() if at is not None}
    return stored or None
