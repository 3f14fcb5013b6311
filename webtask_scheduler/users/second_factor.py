"""Second factors: an app on a phone, and recovery codes for the day it is lost. Made, taken away and asked for here."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Q
from django_otp.plugins.otp_static.models import StaticToken

from webtask_scheduler import vault
from webtask_scheduler.access import audit
from webtask_scheduler.users.models import AppDevice, RecoveryDevice

RECOVERY_CODES = 10


def has_one(user: Any) -> bool:
    """Return whether a user has a device of either kind, in one statement."""
    of_user = get_user_model().objects.filter(pk=user.pk)
    return bool(of_user.filter(Q(totpdevice__confirmed=True) | Q(staticdevice__confirmed=True)).exists())


def add(device: AppDevice) -> list[str]:
    """Store an app in the place of all that its user had; return the recovery codes, which are shown once."""
    codes = [StaticToken.random_token() for _ in range(RECOVERY_CODES)]
    with transaction.atomic():
        _forget(device.user)
        device.save()
        recovery = RecoveryDevice.objects.create(user=device.user, name="recovery codes", confirmed=True)
        StaticToken.objects.bulk_create(StaticToken(device=recovery, token=vault.seal(code)) for code in codes)
        _record("added", device.user_id, after={"device": device.name, "recovery_codes": len(codes)})
    return codes


def remove(user: Any) -> bool:
    """Take away all that a user has; return whether there was any."""
    with transaction.atomic():
        names = _forget(user)
        if names:
            _record("removed", user.pk, before={"devices": names})
    return bool(names)


def _forget(user: Any) -> list[str]:
    names: list[str] = []
    for kind in (AppDevice, RecoveryDevice):
        devices = kind.objects.filter(user=user)
        names += devices.values_list("name", flat=True)
        devices.delete()
    return sorted(names)


def removed(devices: Iterable[Any]) -> None:
    """Record that devices are taken away, in the transaction that does it."""
    for device in devices:
        _record("removed", device.user_id, before={"devices": [device.name]})


def switched(device: Any) -> None:
    """Record that a device was confirmed, or no longer is, in the transaction that does it."""
    told = {"device": device.name}
    _record(
        "changed",
        device.user_id,
        before=told | {"confirmed": not device.confirmed},
        after=told | {"confirmed": device.confirmed},
    )


def verify(user: Any, code: str) -> Any:
    """Return the user's device that takes a code, which then is used up; None if there is none, or it has to wait.

    Raises VaultError.
    """
    # An app shows digits, a recovery code is letters: a code for the one is no failed try of the other.
    kind = AppDevice if code.isdigit() else RecoveryDevice
    with transaction.atomic():
        # Locked, so that a code is good once.
        devices = kind.objects.devices_for_user(user, confirmed=True).select_for_update()
        return next((device for device in devices if device.verify_token(code)), None)


def _record(what: str, user_id: int, **told: Any) -> None:
    audit.record(f"second_factor.{what}", kind="user", of=user_id, owner_id=user_id, **told)
