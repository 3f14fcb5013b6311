"""`/dead`: what failed or was missed and was not dismissed, by host and cause, to be sent again or dismissed."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_POST, require_safe

from webtask_scheduler.dashboard import charts, queries
from webtask_scheduler.dashboard.frame import show
from webtask_scheduler.dashboard.who import caller_of, changer_of, may_stop_calls, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import CallStop, ErrorKind, State
from webtask_scheduler.scheduler.rules.instants import read_instant
from webtask_scheduler.scheduler.services import letters
from webtask_scheduler.scheduler.services.letters import Letter

LOST = (State.FAILED, State.MISSED)
# Groups of one page, and deliveries of a group.
GROUPS_SHOWN, LETTERS_SHOWN = 15, 50
# The least time that a drawing of a group covers, and its columns.
DRAWN_LEAST, COLUMNS = timedelta(hours=1), 24
# Over how many seconds replays may be spread, and how that is said.
SPREADS = (
    ("0", gettext_lazy("all now")),
    ("60", gettext_lazy("over 1 minute")),
    ("600", gettext_lazy("over 10 minutes")),
    ("3600", gettext_lazy("over 1 hour")),
)


class Cause(NamedTuple):
    """What the dead letters of a group have in common; their names are those of the query and of the forms."""

    host: str
    state: str
    error: str
    code: str

    @classmethod
    def of(cls, letter: Letter | letters.Group) -> "Cause":
        return cls(letter.host, letter.state, letter.error, str(letter.status_code or ""))

    @property
    def word(self) -> str:
        return cause_of(self.state, self.error, int(self.code) if self.code.isdecimal() else None)


def cause_of(state: str, error: str, code: int | None) -> str:
    """Return in a word or two why deliveries did not succeed."""
    if code:
        return str(code)
    if error in ErrorKind.values:
        return str(ErrorKind(error).label)
    return _("Missed") if state == State.MISSED else _("Not called")


@page
@require_safe
def dead(request: HttpRequest) -> HttpResponse:
    """Show the groups; of one that the query names, its latest deliveries."""
    cause = _cause(request.GET)
    values: dict[str, Any] = {
        "spreads": SPREADS,
        "only_own": caller_of(request).sees_all and not changer_of(request).sees_all,
    }
    if cause:
        listed = _of(letters.find(caller_of(request)).found, cause)
        values |= {"cause": cause, "deliveries": listed[:LETTERS_SHOWN], "count": len(listed)}
    else:
        found = letters.groups(caller_of(request))
        looked_at = sum(len(group.ended) for group in found.found)
        values |= {
            "is_cut": found.is_cut,
            "looked_at": number_format(looked_at, use_l10n=True, force_grouping=True),
        }
        mine, total = "mine" in request.GET, len(found.found)
        begins = _place(request.GET.get("from", ""))
        # There may be fewer than when the address was made.
        begins = begins if begins < total else 0
        groups = groups_of(found.found, mine=mine, begins=begins, most=GROUPS_SHOWN)
        values |= {"groups": groups, "columns": COLUMNS, "may_stop": may_stop_calls(request)}
        if total > len(groups):
            query = {"mine": "1"} if mine else {}
            ends = begins + len(groups)
            values |= {"first": begins + 1, "last": ends, "total": total, "start": f"?{urlencode(query)}"}
            values["following"] = f"?{urlencode(query | {'from': ends})}" if ends < total else ""
        if not groups:
            # What is no dead letter any more and was not sent again was dismissed.
            values["last_lost"] = queries.last_lost(caller_of(request))
        if values["may_stop"]:
            hosts = {group["cause"].host for group in groups}
            values["stopped"] = set(CallStop.objects.filter(host__in=hosts).values_list("host", flat=True))
    return show(request, "dead.html", title=_("Dead letters"), at="dead", **values)


def _place(text: str) -> int:
    """Return the number in an address, of the group before the first one; 0 where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0  # noqa: PLR2004


def _cause(values: Any) -> Cause | None:
    """Return the group that a query or a form names; None if it names none."""
    host, state, error, code = (values.get(name, "") for name in Cause._fields)
    return Cause(host, state, error, code) if host and state in LOST else None


def _of(found: Iterable[Letter], cause: Cause) -> list[Letter]:
    return sorted((one for one in found if Cause.of(one) == cause), key=lambda one: one.finished_at, reverse=True)


def groups_of(
    found: Iterable[letters.Group], *, mine: bool, begins: int = 0, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the groups, the largest first; of many, `most` after the first `begins`."""
    ended = {Cause.of(group): group.ended for group in found}
    largest = sorted(ended.items(), key=lambda group: (-len(group[1]), group[0]))
    return [
        {
            "cause": cause,
            "count": len(moments),
            "first_at": datetime.fromtimestamp(min(moments), UTC),
            "last_at": datetime.fromtimestamp(max(moments), UTC),
            "drawn": _drawn(moments),
            "link": f"{reverse('dashboard:dead')}?{urlencode(_query(cause, mine=mine))}",
        }
        for cause, moments in largest[begins : None if most is None else begins + most]
    ]


def _drawn(moments: Sequence[float]) -> str:
    """Return when the deliveries of a group ended, as the outline of columns from the first to the last."""
    last = max(moments)
    span = max(last - min(moments), DRAWN_LEAST.total_seconds())
    counts = [0] * COLUMNS
    for moment in moments:
        counts[min(COLUMNS - 1, int((moment - last + span) / span * COLUMNS))] += 1
    return charts.columns(counts)


def _query(cause: Cause, *, mine: bool) -> dict[str, str]:
    query = {name: value for name, value in cause._asdict().items() if value}
    return query | ({"mine": "1"} if mine else {})


@page
@require_POST
def act(request: HttpRequest, action: str) -> HttpResponse:
    """Replay or dismiss what a group holds, or the deliveries of it that are named, and go back."""
    cause = _cause(request.POST)
    if cause is None or action not in ("replay", "dismiss"):
        raise Http404
    caller = changer_of(request)
    named = set(request.POST.getlist("id"))
    ids = [one.delivery_id for one in _of(letters.find(caller).found, cause)]
    ids = [pk for pk in ids if not named or str(pk) in named]
    if action == "dismiss":
        dismissal = services.dismiss_many(ids)
        text = ngettext(
            "%(count)s dead letter is dismissed.", "%(count)s dead letters are dismissed.", dismissal.number
        )
        # The message offers the way back.
        undo = _restore_address(dismissal, mine="mine" in request.GET) if dismissal.number else ""
        shown = text % {"count": number_format(dismissal.number, force_grouping=True)}
        messages.success(request, shown, extra_tags=undo)
    else:
        spread = request.POST.get("spread", "0")
        result = services.replay_letters(ids, spread_seconds=int(spread) if spread in dict(SPREADS) else 0)
        text = ngettext("%(count)s dead letter is sent again.", "%(count)s dead letters are sent again.", result.done)
        messages.success(request, text % {"count": number_format(result.done, force_grouping=True)})
        if result.left:
            text = ngettext(
                "%(count)s is not: its timer has as many extra deliveries as it may have, or it is sent again already.",
                "%(count)s are not: their timers have as many extra deliveries as they may have, or they are sent again"
                " already.",
                result.left,
            )
            messages.warning(request, text % {"count": number_format(result.left, force_grouping=True)})
    return redirect(f"{reverse('dashboard:dead')}{'?mine=1' if 'mine' in request.GET else ''}")


def _restore_address(dismissal: services.Dismissal, *, mine: bool) -> str:
    moments = {name: moment.isoformat() for name, moment in dismissal._asdict().items() if name != "number"}
    return f"{reverse('dashboard:restore')}?{urlencode(moments | ({'mine': '1'} if mine else {}))}"


@page
@require_POST
def restore(request: HttpRequest) -> HttpResponse:
    """Undo the dismissal that the address names by its moments, and go back."""
    try:
        moments = {
            name: read_instant(request.GET.get(name, "")) for name in services.Dismissal._fields if name != "number"
        }
        done = services.restore(services.Dismissal(0, **moments), caller=changer_of(request))
    except ValueError as error:
        raise Http404 from error
    text = ngettext(
        "%(count)s dead letter is to be looked at again.", "%(count)s dead letters are to be looked at again.", done
    )
    messages.success(request, text % {"count": number_format(done, force_grouping=True)})
    return redirect(f"{reverse('dashboard:dead')}{'?mine=1' if 'mine' in request.GET else ''}")
