"""What is done to the timers that are ticked in the list: now, with counts; or to all that fit, as an operation."""

import base64
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from webtask_scheduler.dashboard.frame import list_before
from webtask_scheduler.dashboard.who import changer_of, page
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Timer

# Timers that one form may name: as many as two pages hold.
TICKED_MOST = 60


class _Did(NamedTuple):
    """To how many timers it was done, and for each text of `left` how many it was not done to for that reason."""

    done: int
    left: tuple[int, ...]
    # Those that `undo` of the deed takes back.
    changed: Sequence[uuid.UUID] = ()


class _Deed(NamedTuple):
    """Does something to timers, and says so."""

    do: Callable[[Sequence[uuid.UUID]], _Did]
    done: Callable[[int], str]
    left: tuple[Callable[[int], str], ...]
    undo: str = ""


def _run(timer_ids: Sequence[uuid.UUID]) -> _Did:
    ran = services.run_many_now(timer_ids)
    return _Did(ran.done, (len(ran.ended), len(ran.full)))


def _switch(timer_ids: Sequence[uuid.UUID], *, enabled: bool) -> _Did:
    tasks = Timer.objects.filter(pk__in=timer_ids).exclude(periodic_task=None)
    switched = services.switch_many(list(tasks.values_list("periodic_task_id", flat=True)), enabled=enabled)
    return _Did(switched.done, (len(timer_ids) - switched.done,), switched.changed)


def _replay(timer_ids: Sequence[uuid.UUID]) -> _Did:
    done = services.replay_many_now(timer_ids)
    return _Did(done, (len(timer_ids) - done,))


def _cancel(timer_ids: Sequence[uuid.UUID]) -> _Did:
    done = services.cancel_many_now(timer_ids)
    return _Did(done, (len(timer_ids) - done,))


def _ended(count: int) -> str:
    return ngettext("%(count)s has ended and stays as it is.", "%(count)s have ended and stay as they are.", count)


_DEEDS = {
    "run": _Deed(
        _run,
        lambda count: ngettext("%(count)s timer is called now.", "%(count)s timers are called now.", count),
        (
            _ended,
            lambda count: ngettext(
                "%(count)s is not called: too many of its extra calls are open.",
                "%(count)s are not called: too many of their extra calls are open.",
                count,
            ),
        ),
    ),
    "pause": _Deed(
        lambda ids: _switch(ids, enabled=False),
        lambda count: ngettext("%(count)s timer is paused.", "%(count)s timers are paused.", count),
        (_ended,),
        undo="resume",
    ),
    "resume": _Deed(
        lambda ids: _switch(ids, enabled=True),
        lambda count: ngettext("%(count)s timer goes on.", "%(count)s timers go on.", count),
        (_ended,),
        undo="pause",
    ),
    "replay": _Deed(
        _replay,
        lambda count: ngettext("%(count)s timer is sent again.", "%(count)s timers are sent again.", count),
        (
            lambda count: ngettext(
                "%(count)s neither failed nor was missed.", "%(count)s neither failed nor were missed.", count
            ),
        ),
    ),
    "cancel": _Deed(
        _cancel,
        lambda count: ngettext("%(count)s timer is cancelled.", "%(count)s timers are cancelled.", count),
        (lambda count: ngettext("%(count)s had ended already.", "%(count)s had ended already.", count),),
    ),
}


@page
@require_POST
def act(request: HttpRequest) -> HttpResponse:
    """Do to the ticked timers what a button asks, say to how many it was done, and go back to the list.

    Or to those that the address names, with what undoes it.
    """
    deed = _DEEDS.get(request.POST.get("action") or request.GET.get("action", ""))
    if deed is None:
        raise Http404
    named = list(dict.fromkeys(request.POST.getlist("id") or _unpacked(request.GET.get("of", ""))))
    if not named:
        messages.error(request, _("Tick the timers first that it is to be done to."))
    elif len(named) > TICKED_MOST:
        messages.error(request, _("At most %(most)s timers at once; nothing was done.") % {"most": TICKED_MOST})
    else:
        _do(request, deed, named)
    return redirect(list_before(request) or reverse("dashboard:timers"))


def _do(request: HttpRequest, deed: _Deed, named: Sequence[str]) -> None:
    """Do it to those of the named timers that may be changed, and say to how many it was done and to how many not."""
    ids = _own(request, named)
    if ids:
        did = deed.do(ids)
        if did.done:
            undo = _address(request, deed.undo, did.changed) if deed.undo and did.changed else ""
            messages.success(request, deed.done(did.done) % {"count": did.done}, extra_tags=undo)
        for count, text in zip(did.left, deed.left, strict=True):
            if count:
                messages.warning(request, text(count) % {"count": count})
    if others := len(named) - len(ids):
        text_of_others = ngettext("%(count)s is not yours to change.", "%(count)s are not yours to change.", others)
        messages.error(request, text_of_others % {"count": others})


def _own(request: HttpRequest, named: Sequence[str]) -> list[uuid.UUID]:
    """Return those of the named timers that may be changed, in the order of the list."""
    ids = []
    for text in named:
        try:
            ids.append(uuid.UUID(text))
        except ValueError:
            continue
    own = set(Timer.objects.filter(pk__in=ids, **changer_of(request).visible()).values_list("pk", flat=True))
    return [pk for pk in dict.fromkeys(ids) if pk in own]


def _address(request: HttpRequest, action: str, timer_ids: Sequence[uuid.UUID]) -> str:
    """Return the address of a form that does it to just these timers; 60 of them take 1.3 KB."""
    packed = base64.urlsafe_b64encode(b"".join(one.bytes for one in timer_ids)).decode().rstrip("=")
    query = {"action": action, "of": packed} | ({"mine": "1"} if "mine" in request.GET else {})
    return f"{reverse('dashboard:ticked')}?{urlencode(query)}"


def _unpacked(text: str) -> list[str]:
    """Return the ids that an address names; none where it is not one of ours."""
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return [str(uuid.UUID(bytes=found[at : at + 16])) for at in range(0, len(found), 16)]
    except ValueError:
        return []
