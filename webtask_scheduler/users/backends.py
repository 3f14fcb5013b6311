"""Passwords: Django's own backend behind `throttle`."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from webtask_scheduler.users import throttle


class ThrottledBackend(ModelBackend):
    """Looks at a password only if its request may try; else `request.login_wait` says for how many seconds not.

    Without a request, as in a shell, nothing is throttled. Whoever logs the user in calls `throttle.give_back`, once
    all else is right as well: the code of a second factor must not be free to guess.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **fields: Any
    ) -> Any:
        if request is not None and username and password is not None:
            wait = throttle.take(request, username)
            if wait:
                request.login_wait = wait  # type: ignore[attr-defined]
                raise PermissionDenied
        return super().authenticate(request, username, password, **fields)
