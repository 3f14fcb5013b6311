"""The secret address of a user's calendar: makes it, finds whose it is, takes it back.

Calendar programs send no header, so the address itself lets them in: to read what comes, and to nothing else.
"""

import hashlib
import re
import secrets

from django.db import transaction
from django.utils import timezone

from webtask_scheduler.access import audit
from webtask_scheduler.access.models import CalendarAddress

# Where one leaks, people and programs that look for secrets know it by this. 256 bits follow.
PREFIX = "wts_cal_"
_FORM = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


def make(owner_id: int) -> str:
    """Store and return a new secret for a user's calendar; one that there was is refused from now on."""
    text = PREFIX + secrets.token_urlsafe(32)
    with transaction.atomic():
        CalendarAddress.objects.update_or_create(
            owner_id=owner_id, defaults={"digest": _digest(text), "created_at": timezone.now()}
        )
        audit.record("calendar.made", kind="calendar", of=owner_id, owner_id=owner_id)
    return text


def remove(owner_id: int) -> bool:
    """Take a user's secret back; return whether there was one."""
    with transaction.atomic():
        count, __ = CalendarAddress.objects.filter(owner=owner_id).delete()
        if count:
            audit.record("calendar.removed", kind="calendar", of=owner_id, owner_id=owner_id)
    return bool(count)


def of(owner_id: int) -> CalendarAddress | None:
    """Return what is known of a user's secret; None if there is none."""
    return CalendarAddress.objects.filter(owner=owner_id).first()


def find(text: str) -> int | None:
    """Return whose secret a text is; None for one that is not in use, or whose user is gone."""
    if not _FORM.fullmatch(text):
        return None
    # The index compares bytes until the first that differs; a guess cannot choose its digest, and learns nothing.
    found = CalendarAddress.objects.filter(digest=_digest(text), owner__is_active=True)
    return found.values_list("owner_id", flat=True).first()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
