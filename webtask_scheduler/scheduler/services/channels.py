"""Manages where an owner is told of events: channels by mail, Slack and webhook, and what was sent to them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import connection, transaction
from django.utils.translation import gettext_lazy as _

from webtask_scheduler import vault
from webtask_scheduler.access import audit
from webtask_scheduler.access.authentication import is_open
from webtask_scheduler.scheduler.models import (
    HOST_MAX_LENGTH,
    LABEL_MAX_LENGTH,
    NAME_MAX_LENGTH,
    URL_MAX_LENGTH,
    Delivery,
    Notification,
    NotificationChannel,
    ToldFailure,
    host_of,
)
from webtask_scheduler.scheduler.outgoing import checks
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.sealing import MASK, hidden_path, shown_url
from webtask_scheduler.scheduler.services.caller import may_see_all
from webtask_scheduler.scheduler.services.changing import cancel
from webtask_scheduler.wording import translated

CHANNELS_MOST = 20
ROW_LEAST, ROW_MOST = 2, 100
# RFC 5321 allows no longer address.
MAIL_MAX_LENGTH = 254
# Messages of a channel whose calls may still be tried: two hours of them at the shortest interval, an hour is usual.
CALLS_MOST = 720
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^\x00-\x1f\x7f]{0,63}")
KIND = NotificationChannel.Kind
# What an edit may change, and the audit log tells.
EDITED = ("name", "label", "language", "on_dead_letter", "failures_in_row", "on_recovery", "on_late")


class ChannelError(ValidationError):
    """What a channel may not be; `field` is empty where it is none of its fields."""

    def __init__(self, field_name: str, said: Any) -> None:
        self.field = field_name
        super().__init__(said)


class TooManyChannelsError(ChannelError):
    """The owner has as many as it may have."""

    def __init__(self) -> None:
        super().__init__(
            "", _("There are %(most)s channels already. Delete one that is out of use.") % {"most": CHANNELS_MOST}
        )


class TestTooSoonError(ChannelError):
    """A test was sent a moment ago."""

    def __init__(self) -> None:
        said = _("A test was sent less than %(seconds)s s ago. Look whether it arrived.")
        super().__init__("", said % {"seconds": settings.WEBTASK_NOTIFY_SECONDS})


class PausedError(ChannelError):
    """Nothing is sent to a channel that is paused."""

    def __init__(self) -> None:
        super().__init__("", _("The channel is paused. Resume it, then send a test."))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChannel:
    """A channel to make, or what an edit makes of one; without an `address`, an edit keeps it."""

    kind: str
    # Not in a traceback that shows values.
    address: str = field(default="", repr=False)
    name: str = ""
    label: str = ""
    language: str = ""
    on_dead_letter: bool = True
    failures_in_row: int | None = None
    on_recovery: bool = False
    on_late: bool = False

    def columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in EDITED}


def language_of(channel: NotificationChannel) -> str:
    """Return the language of a channel's messages."""
    return channel.language if channel.language in dict(settings.LANGUAGES) else settings.LANGUAGE_CODE


def may_be_told_late(user: Any) -> bool:
    """Return whether a person, or nobody where the API is open, is told how the whole service is."""
    return is_open() or bool(user is not None and may_see_all(user))


def sends_mail() -> bool:
    """Return whether this deployment can send mail."""
    return not settings.EMAIL_BACKEND.endswith(".dummy.EmailBackend")


def add(new: NewChannel, *, owner_id: int | None) -> NotificationChannel:
    """Add a channel for an owner, or for nobody where that is None, and return it. Raises ChannelError, VaultError."""
    _check(new, user=None if owner_id is None else get_user_model().objects.get(pk=owner_id))
    if not new.address:
        raise ChannelError("address", _("An address is required."))
    with transaction.atomic(), connection.cursor() as cursor:
        # Without the lock two at once would both find room.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"channels of {owner_id}"])
        if NotificationChannel.objects.filter(owner=owner_id).count() >= CHANNELS_MOST:
            raise TooManyChannelsError
        now = states.database_now()
        made = NotificationChannel.objects.create(
            owner_id=owner_id,
            kind=new.kind,
            address=vault.seal(new.address),
            shown_address=_shown(new),
            created_at=now,
            active_since=now,
            **new.columns(),
        )
        _record("channel.created", made, after=_told(made))
    return made


def edit(channel_id: int, values: Mapping[str, Any], *, visible: Mapping[str, Any]) -> NotificationChannel:
    """Change a channel that fits the condition `visible`, by the fields of NewChannel but its kind.

    What is left out stays, and so does an address that is empty. Raises NotificationChannel.DoesNotExist, ChannelError.
    """
    with transaction.atomic():
        channel = NotificationChannel.objects.select_for_update(of=("self",)).get(pk=channel_id, **visible)
        before = _told(channel)
        stays = {name: before[name] for name in EDITED}
        new = NewChannel(
            **(
                stays
                | dict(values)
                | {"kind": channel.kind}
                | {name: values.get(name, stays[name]) or "" for name in ("label", "language")}
            )
        )
        _check(new, user=channel.owner)
        for name, value in new.columns().items():
            setattr(channel, name, value)
        is_moved = bool(new.address) and new.address != _value(channel)
        if is_moved:
            channel.address, channel.shown_address = vault.seal(new.address), _shown(new)
            # What waits goes to the new address; a call that is under way knows the old one alone.
            waiting = Notification.objects.filter(channel=channel, state__in=_UNSENT)
            waiting.update(shown_address=channel.shown_address)
            _end_calls(channel)
        channel.is_told_late = channel.is_told_late and channel.on_late
        channel.save()
        after = _told(channel)
        if is_moved:
            # The hosts may be the same; the rest of the URL is not told.
            before, after = {**before, "address": audit.UNTOLD}, {**after, "address": audit.UNTOLD}
        names = [name for name in after if before[name] != after[name] or (is_moved and name == "address")]
        if names:
            changes = [{name: told[name] for name in names} for told in (before, after)]
            _record("channel.changed", channel, before=changes[0], after=changes[1])
    return channel


def _value(channel: NotificationChannel) -> str:
    try:
        return channel.value
    except vault.VaultError:
        # Given again, it can be read again.
        return ""


def switch(channel_id: int, *, paused: bool, visible: Mapping[str, Any]) -> NotificationChannel:
    """Pause or resume a channel. It is never told of what happened meanwhile. Raises DoesNotExist."""
    with transaction.atomic():
        channel = NotificationChannel.objects.select_for_update().get(pk=channel_id, **visible)
        if paused == (channel.paused_at is not None):
            return channel
        now = states.database_now()
        if paused:
            channel.paused_at = now
            channel.is_told_late = False
            _drop_unsent(channel)
        else:
            channel.paused_at, channel.active_since = None, now
        channel.save(update_fields=["paused_at", "active_since", "is_told_late"])
        _record("channel.paused" if paused else "channel.resumed", channel)
    return channel


def delete(channel_id: int, *, visible: Mapping[str, Any]) -> None:
    """Delete a channel; what was sent stays listed, what was not is never sent. Raises DoesNotExist."""
    with transaction.atomic():
        channel = NotificationChannel.objects.select_for_update().get(pk=channel_id, **visible)
        _drop_unsent(channel)
        _record("channel.deleted", channel, before=_told(channel))
        channel.delete()


def end_owner(owner_id: int) -> None:
    """Delete the channels of a user who is being deleted. Call it in the transaction of the deletion."""
    Notification.objects.filter(owner=owner_id, state__in=_UNSENT).delete()
    NotificationChannel.objects.filter(owner=owner_id).delete()


_UNSENT = (Notification.State.GATHERING, Notification.State.SENDING)


def _drop_unsent(channel: NotificationChannel) -> None:
    Notification.objects.filter(channel=channel, state__in=_UNSENT).delete()
    ToldFailure.objects.filter(channel=channel).delete()
    _end_calls(channel)


def _end_calls(channel: NotificationChannel) -> None:
    """Cancel the timers that still try to call the channel's URL."""
    called = Notification.objects.filter(channel=channel, call_timer__isnull=False).order_by("-pk")
    timers = list(called.values_list("call_timer", flat=True)[:CALLS_MOST])
    for timer_id in Delivery.objects.filter(states.OPEN, timer__in=timers).values_list("timer", flat=True):
        cancel(timer_id)


def _check(new: NewChannel, *, user: Any) -> None:
    """Raise ChannelError for what cannot be, or may not be for this user."""
    if new.kind not in KIND.values:
        raise ChannelError("kind", _("One of mail, slack and webhook is required."))
    if len(new.name) > NAME_MAX_LENGTH or not new.name.isprintable():
        raise ChannelError(
            "name", _("A name has at most %(most)s characters, all printable.") % {"most": NAME_MAX_LENGTH}
        )
    if new.label and (len(new.label) > LABEL_MAX_LENGTH or not _LABEL.fullmatch(new.label)):
        raise ChannelError("label", _("A label is given as key=value, as in team=billing."))
    if new.language and new.language not in dict(settings.LANGUAGES):
        codes = ", ".join(code for code, _name in settings.LANGUAGES)
        raise ChannelError("language", _("A language is one of %(codes)s.") % {"codes": codes})
    if new.failures_in_row is not None and not ROW_LEAST <= new.failures_in_row <= ROW_MOST:
        said = _("A whole number from %(least)s to %(most)s is required.") % {"least": ROW_LEAST, "most": ROW_MOST}
        raise ChannelError("failures_in_row", said)
    if not (new.on_dead_letter or new.failures_in_row or new.on_late):
        raise ChannelError(
            "on_dead_letter", _("Choose at least one event. Of a recovery, only whoever was told of a failure is told.")
        )
    if new.on_late and not may_be_told_late(user):
        raise ChannelError("on_late", _("Only people who may see the whole service are told when calls are late."))
    if new.address:
        (_check_mail if new.kind == KIND.MAIL else _check_url)(new.address, user)


def _check_mail(address: str, user: Any) -> None:
    """Refuse what is no address, and the address of somebody else: nobody is to be sent mail by strangers."""
    if not sends_mail():
        raise ChannelError("address", _("This service sends no mail: its operator has to set EMAIL_URL."))
    try:
        if len(address) > MAIL_MAX_LENGTH or not address.isprintable() or not address.isascii():
            raise ValidationError("")  # noqa: TRY301 - as the validator does
        validate_email(address)
    except ValidationError as error:
        raise ChannelError("address", _("This is no mail address.")) from error
    if not may_be_mailed(address, user):
        own = "" if user is None else user.get_username()
        allowed = ", ".join(settings.WEBTASK_MAIL_DOMAINS)
        said = _("Mail goes to your own address only, %(own)s.") % {"own": own}
        if allowed:
            said = _("Mail goes to your own address, %(own)s, or to one at %(domains)s.") % {
                "own": own,
                "domains": allowed,
            }
        raise ChannelError("address", said)


def may_be_mailed(address: str, user: Any) -> bool:
    """Return whether a person, or nobody where the API is open, may have mail sent to an address."""
    if is_open() or (user is not None and may_see_all(user)):
        return True
    own = "" if user is None else user.get_username()
    return address.lower() == own.lower() or address.rpartition("@")[2].lower() in settings.WEBTASK_MAIL_DOMAINS


def _check_url(address: str, user: Any) -> None:  # noqa: ARG001 - as for mail
    try:
        checks.check_url(address, max_length=URL_MAX_LENGTH, egress=settings.WEBTASK_EGRESS)
        if len(host_of(address)) > HOST_MAX_LENGTH:
            raise ValueError(checks.BAD_HOST)  # noqa: TRY301 - as above
    except ValueError as error:
        raise ChannelError("address", translated(error)) from error
    if MASK in address:
        raise ChannelError("address", _("*** stands for a value that is not shown. Give the value itself."))


def _shown(new: NewChannel) -> str:
    """Return an address without what is secret: of a URL, only its scheme and host are not."""
    return new.address if new.kind == KIND.MAIL else _bare(new.address)


def _bare(url: str) -> str:
    return hidden_path(shown_url(url).replace(f"{MASK}@", ""))


def _told(channel: NotificationChannel) -> dict[str, Any]:
    """Return what the audit log tells of a channel."""
    told = {name: getattr(channel, name) for name in EDITED}
    return {"kind": channel.kind, "address": channel.shown_address, **told}


def _record(action: str, channel: NotificationChannel, **told: Any) -> None:
    audit.record(action, kind="channel", of=channel.pk, owner_id=channel.owner_id, **told)
