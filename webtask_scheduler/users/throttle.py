"""How often somebody may try to log in: after a few failures each next try has to wait, for longer and longer.

Failures are counted for three keys: an account from one address, an address, an account from anywhere. So neither many
passwords for one account, nor one password for many accounts, nor many addresses help. A browser that has logged in
before is counted by itself instead, so that nobody can keep its owner out by failing in the owner's name.

A try is counted before its password is looked at, because tries side by side would otherwise all find a count of zero,
and is taken back when it succeeds. The table has digests alone: what people type as their name may be a password.
"""

import secrets
import unicodedata
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import signing
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import salted_hmac

from webtask_scheduler.access import audit
from webtask_scheduler.addresses import address_of, network_of
from webtask_scheduler.telemetry.events import event
from webtask_scheduler.users.models import LoginFailures


class Allowance(NamedTuple):
    """Failures in a row that cost nothing, and the longest that one more then has to wait."""

    free: int
    wait_most: timedelta


FIRST_WAIT = timedelta(seconds=30)
# Within this time after the last failure, they are failures in a row.
REMEMBERED = timedelta(hours=12)
ACCOUNT_FROM_ADDRESS = Allowance(5, timedelta(minutes=15))
# Many people may share one.
ADDRESS = Allowance(20, timedelta(minutes=15))
# So many only if many addresses try. Its owner waits too, unless the browser is known: that is why it is not long.
ACCOUNT = Allowance(50, timedelta(minutes=5))
KNOWN_BROWSER = Allowance(5, timedelta(minutes=15))
# Rows that one failure deletes, if they are forgotten.
SWEPT = 100

COOKIE = "known_browser"
COOKIE_AGE = timedelta(days=180)
_SALT = "webtask_scheduler.users.throttle"


def take(request: HttpRequest, name: str) -> float:
    """Count a try to log in under a name. Return 0 if it may go on, or the seconds after which the next one may."""
    allowances = _allowances(request, name)
    with transaction.atomic():
        rows = _locked(allowances)
        now = timezone.now()
        wait = max(((row.free_at - now).total_seconds() for row in rows), default=0.0)
        if wait > 0:
            return wait
        for row in rows:
            row.failures = row.failures + 1 if now - row.last_at < REMEMBERED else 1
            row.last_at = now
            row.free_at = now + _wait_after(row.failures, allowances[row.key])
        LoginFailures.objects.bulk_update(rows, ["failures", "last_at", "free_at"])
        old = LoginFailures.objects.filter(last_at__lt=now - REMEMBERED).order_by("last_at")
        LoginFailures.objects.filter(
            pk__in=old.select_for_update(skip_locked=True).values_list("pk", flat=True)[:SWEPT]
        ).delete()
        longest = max((row.free_at for row in rows), default=now)
        if longest > now:
            # Once for each wait, not for each try that has to.
            seconds = round((longest - now).total_seconds())
            # What was typed may be a password: only an account that there is, is named.
            user_id = _user_id(_typed(name))
            told = {"seconds": seconds}
            audit.record("login.throttled", kind="user", of=user_id or "", owner_id=user_id, after=told)
            event("logins_throttled", address=address_of(request), seconds=seconds)
    return 0.0


def give_back(request: HttpRequest, name: str) -> None:
    """Take back the try that `take` has counted, because it succeeded."""
    allowances = _allowances(request, name)
    with transaction.atomic():
        keys = [row.key for row in _locked(allowances)]
        LoginFailures.objects.filter(key__in=keys).update(failures=Greatest(F("failures") - 1, 0), free_at=F("last_at"))
        # What is this person's alone begins anew. An address or an account is not whitewashed by one who gets in.
        own = [key for key, allowance in allowances.items() if allowance in (ACCOUNT_FROM_ADDRESS, KNOWN_BROWSER)]
        LoginFailures.objects.filter(key__in=own).delete()


def remember_browser(request: HttpRequest, response: HttpResponse, name: str, *, path: str) -> None:
    """Let the browser of somebody who has logged in be known from now on, below a path: that of the log-in."""
    if _known_browser(request, _account(name)) is None:
        value = signing.dumps([_account(name), secrets.token_urlsafe(12)], salt=_SALT)
        response.set_cookie(
            COOKIE,
            value,
            max_age=COOKIE_AGE,
            path=path,
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=True,
            samesite="Lax",
        )


def _allowances(request: HttpRequest, name: str) -> dict[str, Allowance]:
    account = _account(name)
    known = _known_browser(request, account)
    if known is not None:
        return {_key("browser", known): KNOWN_BROWSER}
    address = network_of(request)
    return {
        _key("account from address", account, address): ACCOUNT_FROM_ADDRESS,
        _key("address", address): ADDRESS,
        _key("account", account): ACCOUNT,
    }


def _account(name: str) -> str:
    """Return one digest for all spellings of an account's name."""
    name = _typed(name)
    user_id = _user_id(name)
    return _key("name", name.casefold()) if user_id is None else _key("user", str(user_id))


def _typed(name: str) -> str:
    """Return a name as the form reads it."""
    return unicodedata.normalize("NFKC", name.strip())


def _user_id(name: str) -> int | None:
    users = get_user_model().objects.filter(email__iexact=name).values_list("pk", flat=True)
    return next(iter(users[:1]), None)


def _known_browser(request: HttpRequest, account: str) -> str | None:
    """Return the number of a browser in which this account has logged in."""
    try:
        owner, number = signing.loads(request.COOKIES.get(COOKIE, ""), salt=_SALT, max_age=COOKIE_AGE)
    except (signing.BadSignature, TypeError, ValueError):
        return None
    return str(number) if owner == account else None


def _key(*parts: str) -> str:
    return salted_hmac(_SALT, "\0".join(parts), algorithm="sha256").hexdigest()


def _locked(keys: Iterable[str]) -> list[LoginFailures]:
    """Return the rows of keys, made where there are none, locked in one order for all."""
    found: Any = LoginFailures.objects
    found.bulk_create([LoginFailures(key=key) for key in sorted(keys)], ignore_conflicts=True)
    return list(found.select_for_update().filter(key__in=keys).order_by("key"))


def _wait_after(failures: int, allowance: Allowance) -> timedelta:
    over = failures - allowance.free
    return min(FIRST_WAIT * 2 ** min(over, 20), allowance.wait_most) if over >= 0 else timedelta()
