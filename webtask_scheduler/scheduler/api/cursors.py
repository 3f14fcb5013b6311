"""The cursors of lists as clients get them: unreadable, and good for nobody and nothing but their own list.

A place in a list may be the id and the time of a row that its reader does not see, because a page ends where its search
ended. So it is encrypted, which no reader can undo and no client can forge.
"""

import base64
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext as _
from rest_framework import exceptions
from rest_framework.request import Request

from webtask_scheduler.scheduler.services.caller import Caller

_NONCE_BYTES = 12


def seal(place: str | None, *, request: Request, caller: Caller) -> str | None:
    """Return a place in the list at this request's address as a cursor for this caller; None after the last page."""
    if place is None:
        return None
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = nonce + _cipher(settings.SECRET_KEY).encrypt(nonce, place.encode(), _bound_to(request, caller))
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def unseal(cursor: str, *, request: Request, caller: Caller) -> str:
    """Return the place that a cursor holds; it is empty at the beginning of a list.

    Raises ValidationError for a cursor of another caller or list, and of a service with another key.
    """
    if not cursor:
        return ""
    for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        try:
            sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return _cipher(key).decrypt(nonce, text, _bound_to(request, caller)).decode()
        except (ValueError, InvalidTag):
            continue
    raise exceptions.ValidationError({"cursor": [_("This cursor was not given by this list.")]})


def _cipher(key: str | bytes) -> AESGCM:
    return AESGCM(salted_hmac("webtask_scheduler.cursor", "", secret=key, algorithm="sha256").digest())


def _bound_to(request: Request, caller: Caller) -> bytes:
    # The short name and the versioned one are the same list.
    path = request.path.rstrip("/").removeprefix("/api/v1/scheduler")
    return f"{'everyone' if caller.sees_all else caller.owner_id} {path}".encode()
