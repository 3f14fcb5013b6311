"""What each page shows around its content: who looks, whether all is well, and the server's time."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import add_never_cache_headers
from django.utils.http import url_has_allowed_host_and_scheme

from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.dashboard.who import LIVE, caller_of, sees_all, sees_service
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.scheduler.services import letters

THEMES = ("light", "dark")
# The clock of moments, beside UTC.
CLOCKS = ("local",)
# How often a live page asks, in seconds, where it is not as often as the page itself says; 0 is not at all.
RATES = ("0", "2", "5", "30")
YEAR_SECONDS = 365 * 24 * 3600
# The badge counts dead letters up to this.
BADGE_MOST = 99


def frame(request: HttpRequest, *, title: str = "", at: str = "") -> dict[str, Any]:
    """Return what `base.html` needs; `at` is the place in the navigation."""
    user: Any = request.user
    theme = request.COOKIES.get("theme", "")
    entered = is_open() or user.is_authenticated
    return {
        "title": title,
        "at": at,
        "now": instant_text(timezone.now()),
        "theme": theme if theme in THEMES else "",
        "clock": clock if (clock := request.COOKIES.get("clock", "")) in CLOCKS else "",
        "rate": rate if (rate := request.COOKIES.get("rate", "")) in RATES else "",
        "rates": RATES[1:],
        "keys_off": request.COOKIES.get("keys") == "off",
        "entered": entered,
        "sees_all": sees_all(request),
        "mine": "mine" in request.GET,
        "is_open": is_open(),
        "sees_service": entered and sees_service(request),
        "dead_count": letters.count(caller_of(request), most=BADGE_MOST + 1) if entered else 0,
        "badge_most": BADGE_MOST,
        "warnings": _warnings(at) if entered and sees_service(request) else [],
        "flower": settings.WEBTASK_FLOWER_URL if entered and sees_service(request) else "",
        "admin_path": f"/{settings.ADMIN_PATH}" if may_know_admin(user) else "",
    }


def _warnings(at: str) -> list[tuple[str, str]]:
    """Return what is wrong, each with the address of the page that shows the cure; empty where that is none or here."""
    stops = facts.gather().stops
    pages = {"processes": "system", "stops": "system", "keys": "system"}
    links = {about: reverse(f"dashboard:{name}") for about, name in pages.items() if name != at}
    links["late"] = f"{reverse('dashboard:timers')}?late=true"
    if len(stops) == 1 and stops[0]:
        links["stops"] = reverse("dashboard:host", kwargs={"name": stops[0]})
    return [(trouble.text, links.get(trouble.about, "")) for trouble in facts.troubles()]


def may_know_admin(user: Any) -> bool:
    """Return whether the admin's path may be told: a path that was chosen is for its people only."""
    return bool(getattr(user, "is_staff", False)) or (is_open() and settings.ADMIN_PATH == "admin/")


def show(request: HttpRequest, template: str, *, title: str, at: str, status: int = 200, **values: Any) -> HttpResponse:
    """Return a page, which no cache keeps."""
    shown = frame(request, title=title, at=at) | values
    answer = render(request, f"dashboard/{template}", shown, status=status)
    add_never_cache_headers(answer)
    return answer


def is_live(request: HttpRequest) -> bool:
    """Return whether the script asks for the parts of a page that may have changed."""
    return LIVE in request.GET


def list_before(request: HttpRequest) -> str:
    """Return the address of the list of timers that a form was sent from; empty if it was sent from elsewhere."""
    here = request.POST.get("here", "")
    is_ours = url_has_allowed_host_and_scheme(here, allowed_hosts=None)
    return here if is_ours and here.partition("?")[0] == reverse("dashboard:timers") else ""


def keep_in_browser(request: HttpRequest, answer: HttpResponse, name: str, value: str) -> None:
    """Have the browser remember a choice for a year; an empty one it forgets."""
    if value:
        answer.set_cookie(name, value, max_age=YEAR_SECONDS, samesite="Lax", secure=request.is_secure())
    else:
        answer.delete_cookie(name, samesite="Lax")
