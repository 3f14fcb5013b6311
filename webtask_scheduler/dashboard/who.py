"""Who looks at a page and what that person may see and change, by the rules of the API and the admin."""

import functools
from collections.abc import Callable
from typing import Any, cast

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from webtask_scheduler.access import limits
from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.addresses import address_of
from webtask_scheduler.scheduler.api.base import depth_of
from webtask_scheduler.scheduler.models import BulkOperation, Timer
from webtask_scheduler.scheduler.services.caller import Caller, may_change_all, may_see_all
from webtask_scheduler.users.site import second_factor_seen

# What the script asks for in the background has this in its query.
LIVE = "live"
TOO_MANY = 429

View = Callable[..., HttpResponseBase]


def caller_of(request: HttpRequest) -> Caller:
    """Return the caller whose timers a page shows.

    Superusers and staff who may view timers in the admin see all, and with `mine` in the query their own. Where the API
    is open, whoever has not logged in sees the timers that nobody owns, as in the API.
    """
    user: Any = request.user
    if not user.is_authenticated:
        return Caller()
    return Caller(owner_id=user.pk, sees_all=sees_all(request) and "mine" not in request.GET)


def changer_of(request: HttpRequest) -> Caller:
    """Return the caller whose timers a page may change: as `caller_of`, and all with the right to it in the admin."""
    caller = caller_of(request)
    if caller.sees_all and not may_change_all(request.user):
        return Caller(owner_id=caller.owner_id)
    return caller


def sees_all(request: HttpRequest) -> bool:
    """Return whether the timers of all owners may be seen."""
    user: Any = request.user
    return bool(user.is_authenticated and second_factor_seen(user) and may_see_all(user))


def sees_service(request: HttpRequest) -> bool:
    """Return whether the state of the whole service may be seen: counts, processes, lateness."""
    return is_open() or sees_all(request)


def may_stop_calls(request: HttpRequest) -> bool:
    """Return whether calls to a host may be stopped and resumed: on an open service, or with the admin's right to."""
    user: Any = request.user
    return is_open() or (sees_all(request) and user.has_perms(("scheduler.add_callstop", "scheduler.delete_callstop")))


def may_change(request: HttpRequest, thing: Timer | BulkOperation) -> bool:
    """Return whether what is seen may be changed too: one's own, or with the right to do so in the admin."""
    user: Any = request.user
    if thing.owner_id == (user.pk if user.is_authenticated else None):
        return True
    return sees_all(request) and may_change_all(user)


def page(view: View) -> View:
    """Return a view that answers only those who may enter, and is kept by no cache.

    A form is taken from a person only: a call of this service that could send one would make timers that make timers.
    Forms count against the owner's limit of requests, as those of the API do.
    """

    @functools.wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not _may_enter(request):
            if LIVE in request.GET:
                return HttpResponse(status=401)
            query = urlencode({"next": request.get_full_path() if request.method == "GET" else "/"})
            return redirect(f"{reverse('dashboard:login')}?{query}")
        if request.method == "POST":
            if depth_of(cast("Any", request)):
                raise PermissionDenied
            refused = refused_turn(request, owner_id=caller_of(request).owner_id)
            if refused is not None:
                return refused
        found = view(request, *args, **kwargs)
        add_never_cache_headers(found)
        return found

    return answer


def _may_enter(request: HttpRequest) -> bool:
    user: Any = request.user
    return is_open() or bool(user.is_authenticated and second_factor_seen(user))


def refused_turn(request: HttpRequest, *, owner_id: int | None) -> HttpResponse | None:
    """Count a request against its owner's limit, or its address's; return None, or the answer that refuses it."""
    per_second = limits.allowed(owner_id).requests_per_second
    if not per_second:
        return None
    who = f"address:{address_of(request)}" if owner_id is None else f"owner:{owner_id}"
    taken = limits.take(who, per_second=per_second)
    if taken is None or taken.allowed:
        return None
    wait = max(1, round(taken.wait_seconds))
    text = _("Too many requests; nothing was done. Try again in %(seconds)s s.") % {"seconds": wait}
    answer = HttpResponse(text, status=TOO_MANY, content_type="text/plain; charset=utf-8")
    answer["Retry-After"] = str(wait)
    return answer
