"""Signs calls as Standard Webhooks defines, so that a receiver with the secret can verify the sender. Pure."""

import functools
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from secrets import token_bytes

from webtask_scheduler.wording import sentence as _

PREFIX = "whsec_"
SECRET_BYTES = 32
# The bounds of Standard Webhooks.
SECRET_LEAST_BYTES = 24
SECRET_MOST_BYTES = 64


def new_secret() -> str:
    """Return a new random secret."""
    return PREFIX + b64encode(token_bytes(SECRET_BYTES)).decode()


def check_secret(text: str) -> None:
    """Check that calls can be signed with a secret. Raises ValueError with a sentence that does not repeat it."""
    if not text.startswith(PREFIX):
        raise ValueError(_("A signing secret begins with %(prefix)s.", prefix=PREFIX))
    try:
        size = len(_key(text))
    except ValueError as error:
        raise ValueError(
            _("After %(prefix)s, a signing secret is base64, padded with = to its full length.", prefix=PREFIX)
        ) from error
    if not SECRET_LEAST_BYTES <= size <= SECRET_MOST_BYTES:
        bounds = {"least": SECRET_LEAST_BYTES, "most": SECRET_MOST_BYTES}
        raise ValueError(_("A signing secret is %(least)s to %(most)s bytes, not %(size)s.", **bounds, size=size))


def signature(secrets: Sequence[str], *, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`: a signature for each secret, so that receivers can rotate secrets."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    digests = [hmac.digest(_key(secret), signed, "sha256") for secret in secrets]
    return " ".join("v1," + b64encode(digest).decode() for digest in digests)


# Cached because a secret signs many calls in a row.
@functools.lru_cache(1024)
def _key(secret: str) -> bytes:
    return b64decode(secret.removeprefix(PREFIX), validate=True)
