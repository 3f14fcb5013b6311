"""Tells channels what happened: notices what failed, gathers it in one message for each channel, and sends that.

Nothing of it is in the way of a delivery. A turn of upkeep reads what failed since the turn before, along
delivery_lost_idx. What is read, what is gathered of it, and how far was read are written in one transaction, so that
nothing is lost or told twice, whenever a process is killed and however many there are. What a channel is told next is
gathered in one row, until the last message is WEBTASK_NOTIFY_SECONDS old: ten thousand failures are one message.

A URL is called by an ordinary timer, with its retries, its history, its signature and the egress guard. Such timers are
known by who made them, and what becomes of them is told to nobody. Mail is sent from here, by one process at a time, so
that a server that hangs holds one thread of upkeep. What a process was sending as it died, the next sends again.
"""

import contextlib
import json
import logging
import smtplib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.utils import translation

from webtask_scheduler import vault
from webtask_scheduler.access import actor
from webtask_scheduler.scheduler import facts
from webtask_scheduler.scheduler.models import (
    MESSAGE_MAX_LENGTH,
    NAME_MAX_LENGTH,
    RECURRING,
    Attempt,
    Delivery,
    Notification,
    NotificationChannel,
    NotificationCursor,
    State,
    ToldFailure,
)
from webtask_scheduler.scheduler.queue import states
from webtask_scheduler.scheduler.rules import messages
from webtask_scheduler.scheduler.sealing import HIDES_PATH, shown_url
from webtask_scheduler.scheduler.services.channels import (
    PausedError,
    TestTooSoonError,
    language_of,
    may_be_mailed,
    may_be_told_late,
)
from webtask_scheduler.scheduler.services.creating import NewTimer, schedule
from webtask_scheduler.telemetry.events import event

# Failed deliveries that one transaction notices: a tenth of a second.
LOST_ROWS = 5000
# Timers whose success is awaited and that one turn looks at; and that one channel is told of.
AWAITED_ROWS = 2000
AWAITED_MOST = 1000
# Messages of one transaction, and mails of one turn.
SEND_ROWS = 50
MAILS_MOST = 50
# A transaction that has not committed by then is not waited for. Statements end after 30 seconds.
WAIT_MOST_SECONDS = 60
# Calls this late are worth a message, and no longer are from the other on.
LATE_SECONDS = 30.0
ON_TIME_SECONDS = 2.0
# The waits between attempts at a mail, a day together.
MAIL_WAITS = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 240, 480, 720))
# While a process sends a mail, no other does: twice of what one takes at most, see `webtask_scheduler.mail`.
MAIL_LEASE = timedelta(minutes=5)
# Answers of a mail server from here on refuse, and from there on do so for good; and what it says as it hangs up.
REFUSES = 400
FOR_GOOD = 500
HANGS_UP = 421
PRUNE_ROWS = 1000
# A receiver that passes our headers on makes no timers with them, so that a message cannot lead to calls that fail.
DEPTH = 1
THROUGH = actor.NOTIFICATION
# It is tried for about an hour; then the list of what was sent says that it failed.
RETRY = {"max_attempts": 8, "min_seconds": 10.0, "max_seconds": 1200.0}

KIND, STATE = NotificationChannel.Kind, Notification.State
# Whose account was ended is told nothing more.
_OF_ACTIVE = Q(channel__owner__isnull=True) | Q(channel__owner__is_active=True)

# Four probes of small indexes: what a turn costs where there is nothing to do.
_LOOK = """
SELECT (SELECT min(active_since) FROM scheduler_notificationchannel WHERE paused_at IS NULL) AS since,
       EXISTS (SELECT FROM scheduler_notificationchannel WHERE paused_at IS NULL AND on_late) AS late,
       EXISTS (SELECT FROM scheduler_toldfailure) AS awaited,
       EXISTS (SELECT FROM scheduler_notification WHERE state IN ('gathering', 'sending')) AS unsent
"""
# Whoever has the row notices; another process leaves it alone. A cursor in the future is of a clock that was put back:
# nothing would be told until it came to that time, so what ended of late is read once more.
_CURSOR = f"""
SELECT CASE WHEN finished_at > clock_timestamp() THEN clock_timestamp() - interval '{WAIT_MOST_SECONDS} s'
            ELSE finished_at END, delivery, told_failure
  FROM scheduler_notificationcursor WHERE id = 1 FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - only a constant is put in
_BEGIN = """
INSERT INTO scheduler_notificationcursor (id, finished_at, delivery, told_failure)
VALUES (1, %s, '00000000-0000-0000-0000-000000000000', 0) ON CONFLICT DO NOTHING
"""
# A delivery takes its `finished_at` before its transaction commits. So nothing is read that ended after the oldest
# transaction that writes has begun: it might commit something older after this.
_LOST = f"""
WITH lost AS MATERIALIZED (
  SELECT id, timer_id, number, extra, state, attempts, finished_at, fault FROM scheduler_delivery
   WHERE state IN ('failed', 'missed') AND (finished_at, id) > (%(after)s::timestamptz, %(last)s::uuid)
     AND finished_at < (
       SELECT greatest(least(clock_timestamp() - interval '0.1 s', min(xact_start)),
                       clock_timestamp() - make_interval(secs => %(wait)s))
         FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid())
   ORDER BY finished_at, id LIMIT %(limit)s
)
SELECT lost.id, lost.timer_id, lost.number, lost.extra, lost.state, lost.attempts, lost.finished_at,
       coalesce(lost.fault, ''), timer.owner_id, timer.name, timer.host, timer.web_url,
       (timer.options->'labels')::text, {RECURRING}, coalesce(timer.made_by->>'through', '')
  FROM lost JOIN LATERAL (SELECT * FROM scheduler_timer WHERE id = lost.timer_id OFFSET 0) timer ON true
 ORDER BY lost.finished_at, lost.id
"""  # noqa: S608 - only constants are put in
# The latest deliveries of timers that ended, the latest first, by delivery_timer_number_unique.
_LATEST = """
SELECT wanted.id, ARRAY(
    SELECT state FROM scheduler_delivery
     WHERE timer_id = wanted.id AND NOT extra AND state IN ('succeeded', 'failed', 'missed')
     ORDER BY number DESC LIMIT %(most)s)
  FROM unnest(%(timers)s::uuid[]) AS wanted (id)
"""
# Timers whose success is awaited, with the first one since the failure; or without a timer, if that was pruned.
_WELL = """
SELECT told.id, told.channel_id, told.timer, success.number, success.finished_at, timer.name, timer.host, timer.web_url
  FROM (SELECT * FROM scheduler_toldfailure WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) told
  LEFT JOIN LATERAL (SELECT name, host, web_url FROM scheduler_timer WHERE id = told.timer OFFSET 0) timer ON true
  LEFT JOIN LATERAL (SELECT number, finished_at FROM scheduler_delivery
                      WHERE timer_id = told.timer AND number >= told.number AND state = 'succeeded'
                      ORDER BY number LIMIT 1) success ON true
 ORDER BY told.id
"""


class Lost(NamedTuple):
    """A delivery that failed or was missed, with its timer."""

    delivery_id: uuid.UUID
    timer_id: uuid.UUID
    number: int
    extra: bool
    state: str
    attempts: int
    finished_at: datetime
    fault: str
    owner_id: int | None
    name: str
    host: str
    web_url: str
    labels: str | None
    recurring: bool
    through: str

    def has(self, label: str) -> bool:
        key, _, value = label.partition("=")
        return not label or (json.loads(self.labels) if self.labels else {}).get(key) == value


class Turn(NamedTuple):
    """What a turn did."""

    noticed: int = 0
    made: int = 0
    mails: int = 0


# Yields whether no other process does the same now.
Alone = Callable[[], contextlib.AbstractContextManager[bool]]


def turn(*, seconds: float, alone: Alone = lambda: contextlib.nullcontext(True)) -> Turn:
    """Notice what is new, and send what may be sent, for at most `seconds`; mails while `alone`.

    A mail that is begun in that time may take MAIL_LEASE. Raises DatabaseError.
    """
    ends_at = time.monotonic() + seconds
    with connection.cursor() as cursor:
        cursor.execute(_LOOK)
        since, late, awaited, unsent = cursor.fetchone()
    if since is None:
        return Turn()
    found = 0
    if awaited:
        _notice_well(since)
    if late:
        _notice_late(since)
    while time.monotonic() < ends_at:
        noticed = _notice_lost(since)
        found += noticed
        if noticed < LOST_ROWS:
            break
    if not (found or awaited or late or unsent):
        return Turn()
    made = 0
    while time.monotonic() < ends_at and (batch := _make()):
        made += batch
    mails = 0
    # The connection that holds the lock is made only where there is a mail to send.
    if _due_mails(states.database_now()).exists():
        with alone() as is_alone:
            mails = _send_mails(ends_at) if is_alone else 0
    return Turn(found, made, mails)


# Noticing


def _begin(since: datetime) -> tuple[datetime, uuid.UUID, int] | None:
    """Lock the cursor and return it, not before `since`; None while another process has it."""
    with connection.cursor() as cursor:
        cursor.execute(_CURSOR)
        row = cursor.fetchone()
        if row is None:
            cursor.execute(_BEGIN, [since])
            cursor.execute(_CURSOR)
            row = cursor.fetchone()
    if row is None:
        return None
    return (since, uuid.UUID(int=0), row[2]) if row[0] < since else (row[0], row[1], row[2])


def _notice_lost(since: datetime) -> int:
    """Gather one batch of deliveries that failed or were missed; return how many were read."""
    with transaction.atomic():
        place = _begin(since)
        if place is None:
            return 0
        with connection.cursor() as cursor:
            values: dict[str, Any] = {
                "after": place[0],
                "last": place[1],
                "wait": WAIT_MOST_SECONDS,
                "limit": LOST_ROWS,
            }
            cursor.execute(_LOST, values)
            lost = [Lost(*row) for row in cursor.fetchall()]
        if not lost:
            return 0
        NotificationCursor.objects.filter(pk=1).update(finished_at=lost[-1].finished_at, delivery=lost[-1].delivery_id)
        # What tells of failures is not told of.
        by_owner: dict[int | None, list[Lost]] = defaultdict(list)
        for one in lost:
            if one.through != THROUGH:
                by_owner[one.owner_id].append(one)
        for channel in _channels(by_owner):
            told = [
                one
                for one in by_owner[channel.owner_id]
                if one.finished_at >= channel.active_since and one.has(channel.label)
            ]
            if told:
                _gather_lost(channel, told)
        return len(lost)


def _channels(owner_ids: Iterable[int | None]) -> list[NotificationChannel]:
    """Return the channels of owners that are told of failures."""
    known = [owner_id for owner_id in owner_ids if owner_id is not None]
    whose = Q(owner__in=known, owner__is_active=True)
    if None in owner_ids:
        whose |= Q(owner__isnull=True)
    wanted = NotificationChannel.objects.filter(whose, Q(on_dead_letter=True) | Q(failures_in_row__isnull=False))
    return list(wanted.filter(paused_at=None).order_by("pk"))


def _gather_lost(channel: NotificationChannel, lost: Sequence[Lost]) -> None:
    found: dict[str, Any] = {}
    if channel.on_dead_letter:
        hosts: dict[str, int] = defaultdict(int)
        for one in lost:
            hosts[one.host] += 1
        found["lost"] = {
            "count": len(lost),
            "since": lost[0].finished_at.isoformat(),
            "hosts": messages.few_hosts(hosts),
            "first": _described(lost[: messages.FIRST_MOST]),
        }
    if channel.failures_in_row or channel.on_recovery:
        failing = _gather_failing(channel, [one for one in lost if one.recurring and not one.extra])
        if failing:
            found["failing"] = failing
    if found:
        _gather(channel, found)


def _gather_failing(channel: NotificationChannel, lost: Sequence[Lost]) -> dict[str, Any] | None:
    """Note which recurring timers the channel is told of; return those that failed so often in a row, None for none."""
    latest = {one.timer_id: one for one in lost}
    told = {row.timer: row for row in ToldFailure.objects.filter(channel=channel, timer__in=list(latest))}
    in_row: dict[uuid.UUID, int] = {}
    if channel.failures_in_row:
        asked = [timer_id for timer_id in latest if timer_id not in told or not told[timer_id].is_row]
        in_row = {
            pk: n for pk, n in _in_row(asked, most=channel.failures_in_row).items() if n >= channel.failures_in_row
        }
    new = [
        ToldFailure(channel=channel, timer=timer_id, number=one.number, is_row=timer_id in in_row)
        for timer_id, one in latest.items()
        if timer_id not in told and (channel.on_dead_letter or timer_id in in_row)
    ]
    room = AWAITED_MOST - ToldFailure.objects.filter(channel=channel).count() if new else 0
    ToldFailure.objects.bulk_create(new[: max(0, room)])
    for timer_id, row in told.items():
        row.number, row.is_row = max(row.number, latest[timer_id].number), row.is_row or timer_id in in_row
    ToldFailure.objects.bulk_update(told.values(), ["number", "is_row"], batch_size=500)
    if not in_row:
        return None
    first = [latest[timer_id] for timer_id in list(in_row)[: messages.FIRST_MOST]]
    described = [item | {"in_row": in_row[one.timer_id]} for one, item in zip(first, _described(first), strict=True)]
    return {"count": len(in_row), "first": described}


def _in_row(timer_ids: Sequence[uuid.UUID], *, most: int) -> dict[uuid.UUID, int]:
    """Return how many of each timer's latest deliveries failed, up to the first that did not, or to `most`."""
    if not timer_ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_LATEST, {"timers": list(timer_ids), "most": most})
        rows = cursor.fetchall()
    return {
        timer_id: next((place for place, state in enumerate(ended) if state == State.SUCCEEDED), len(ended))
        for timer_id, ended in rows
    }


def _described(lost: Sequence[Lost]) -> list[dict[str, Any]]:
    """Return what a message says of deliveries, with the errors of their last attempts."""
    last = _last_messages([one.delivery_id for one in lost])
    return [
        _of_timer(one.timer_id, one.name, one.host, one.web_url, one.finished_at)
        | {
            "delivery_id": str(one.delivery_id),
            "number": one.number,
            "status": one.state,
            "attempts": one.attempts,
            "error": one.fault or last.get(one.delivery_id, ""),
        }
        for one in lost
    ]


def _last_messages(delivery_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Return what the last attempts at deliveries said."""
    rows = Attempt.objects.filter(delivery__in=delivery_ids).order_by("number")
    return dict(rows.values_list("delivery", "message"))


def _of_timer(timer_id: uuid.UUID, name: str, host: str, web_url: str, at: datetime) -> dict[str, Any]:
    place = messages.place_of(shown_url(web_url), host)
    return {"task_id": str(timer_id), "name": name, "place": place, "at": at.isoformat()}


def _notice_well(since: datetime) -> None:
    """Gather which timers succeeded since a channel was told of their failure."""
    with transaction.atomic():
        place = _begin(since)
        if place is None:
            return
        with connection.cursor() as cursor:
            cursor.execute(_WELL, {"after": place[2], "limit": AWAITED_ROWS})
            rows = cursor.fetchall()
        after = rows[-1][0] if len(rows) == AWAITED_ROWS else 0
        if after != place[2]:
            NotificationCursor.objects.filter(pk=1).update(told_failure=after)
        done: list[int] = []
        well: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for pk, channel_id, timer_id, number, at, name, host, web_url in rows:
            if host is None:
                done.append(pk)
            elif number is not None:
                done.append(pk)
                well[channel_id].append(_of_timer(timer_id, name, host, web_url, at))
        if not done:
            return
        ToldFailure.objects.filter(pk__in=done).delete()
        channels = NotificationChannel.objects.filter(pk__in=list(well), on_recovery=True, paused_at=None)
        for channel in channels.order_by("pk"):
            items = well[channel.pk]
            _gather(channel, {"recovered": {"count": len(items), "first": items[: messages.FIRST_MOST]}})


def _notice_late(since: datetime) -> None:
    """Gather whether calls have begun to be late, or no longer are."""
    found = facts.gather(at_once=True)
    # What an operator stopped is not late.
    seconds = 0.0 if found.all_stopped else found.late_seconds
    is_late, is_on_time = seconds > LATE_SECONDS, seconds <= ON_TIME_SECONDS
    if not (is_late or is_on_time):
        return
    with transaction.atomic():
        if _begin(since) is None:
            return
        wanted = NotificationChannel.objects.select_for_update(of=("self",)).select_related("owner")
        for channel in wanted.filter(paused_at=None, on_late=True, is_told_late=not is_late).order_by("pk"):
            if channel.owner is None or (channel.owner.is_active and may_be_told_late(channel.owner)):
                part: dict[str, Any] = {"late": {"count": found.late, "seconds": round(seconds)}}
                _gather(channel, part if is_late else {"on_time": {"seconds": round(seconds)}})
            channel.is_told_late = is_late
            channel.save(update_fields=["is_told_late"])


def _gather(channel: NotificationChannel, found: Mapping[str, Any]) -> None:
    """Add to what the channel is told next. The cursor is locked, so that one process does so at a time."""
    waiting = Notification.objects.select_for_update().filter(channel=channel, state=STATE.GATHERING).first()
    if waiting is None:
        _of(channel, gathered=found, created_at=states.database_now()).save(force_insert=True)
        return
    waiting.gathered = messages.merged(waiting.gathered, found)
    waiting.save(update_fields=["gathered"])


def _of(channel: NotificationChannel, **values: Any) -> Notification:
    return Notification(
        owner_id=channel.owner_id,
        channel=channel,
        kind=channel.kind,
        shown_address=channel.shown_address,
        **values,
    )


# Sending


def test(channel_id: int, *, visible: Mapping[str, Any]) -> Notification:
    """Send a test to a channel at once, at most one in the time between two messages.

    Raises NotificationChannel.DoesNotExist, PausedError, TestTooSoonError.
    """
    with transaction.atomic():
        channel = NotificationChannel.objects.select_for_update().get(pk=channel_id, **visible)
        if channel.paused_at is not None:
            raise PausedError
        now = states.database_now()
        recent = Notification.objects.filter(channel=channel, gathered__has_key="test", created_at__lte=now)
        if recent.filter(created_at__gt=now - timedelta(seconds=settings.WEBTASK_NOTIFY_SECONDS)).exists():
            raise TestTooSoonError
        # Not one that gathers: it takes nothing more.
        made = _of(channel, gathered={"test": {}}, created_at=now, state=STATE.SENDING)
        made.save(force_insert=True)
        _hand_over([made], now=now)
    return made


def _make() -> int:
    """Make the messages of channels that may be told again, and hand them over; return how many."""
    with transaction.atomic():
        now = states.database_now()
        rested = now - timedelta(seconds=settings.WEBTASK_NOTIFY_SECONDS)
        # Not in the future either: a clock that was put back must not keep a channel silent.
        may_tell = Q(channel__told_at__isnull=True) | Q(channel__told_at__lte=rested) | Q(channel__told_at__gt=now)
        wanted = Notification.objects.select_for_update(skip_locked=True, of=("self", "channel"))
        # `created_at` tells Django that there is a channel: rows of an outer join cannot be locked.
        waiting = wanted.filter(
            may_tell, _OF_ACTIVE, state=STATE.GATHERING, channel__created_at__isnull=False, channel__paused_at=None
        )
        found = list(waiting.select_related("channel").order_by("pk")[:SEND_ROWS])
        _hand_over(found, now=now)
        return len(found)


def _hand_over(found: Sequence[Notification], *, now: datetime) -> None:
    """Write messages, and give each to a timer or to the mails that are to be sent."""
    timers: list[tuple[Notification, NewTimer]] = []
    told: list[int] = []
    for one in found:
        channel = one.channel
        if channel is None:
            raise ValueError("A notification without a channel is not sent.")
        told.append(channel.pk)
        with translation.override(language_of(channel)):
            said = messages.message(one.gathered, channel=channel.name, base_url=settings.WEBTASK_PUBLIC_URL, now=now)
        one.subject, one.text, one.made_at, one.state = said.subject, said.text, now, STATE.SENDING
        if one.kind == KIND.MAIL:
            one.next_attempt_at = now
            continue
        try:
            timers.append((one, _timer(channel, said)))
        except vault.VaultError as error:
            one.state, one.ended_at, one.error = STATE.FAILED, now, str(error)[:MESSAGE_MAX_LENGTH]
    if timers:
        with actor.of(actor.Actor(through=THROUGH)):
            made = schedule([timer for _, timer in timers])
        for (one, _), stored in zip(timers, made, strict=True):
            one.state, one.call_timer = STATE.CALLED, stored.timer_id
    names = ["subject", "text", "made_at", "state", "next_attempt_at", "ended_at", "error", "call_timer"]
    Notification.objects.bulk_update(found, names)
    NotificationChannel.objects.filter(pk__in=told).update(told_at=now)
    for one in found:
        event("notification_made", notification=one.pk, kind=one.kind, channel=one.channel_id, timer=one.call_timer)


def _timer(channel: NotificationChannel, said: messages.Message) -> NewTimer:
    """Return the timer that calls a channel's URL. Raises VaultError."""
    body = messages.slack_body(said) if channel.kind == KIND.SLACK else json.dumps(said.body)
    options = {"body": body, "content_type": "application/json", "retry": RETRY, "depth": DEPTH, HIDES_PATH: True}
    name = f"Notification to {channel}"[:NAME_MAX_LENGTH]
    return NewTimer(web_url=channel.value, delay_seconds=0.0, name=name, options=options, owner_id=channel.owner_id)


# Mail


def _send_mails(ends_at: float) -> int:
    """Send the mails that are due; return how many went out. A server that is away is asked once a turn."""
    server: Any = None
    sent = 0
    try:
        for _ in range(MAILS_MOST):
            one = _take_mail() if time.monotonic() < ends_at else None
            if one is None:
                break
            server = server or get_connection()
            failure = _sent_by(server, one)
            _note_mail(one, failure)
            sent += failure is None
            if failure is not None and failure.is_away:
                break
    finally:
        if server is not None:
            with contextlib.suppress(Exception):
                server.close()
    return sent


class MailFailure(NamedTuple):
    """Why a mail did not go out; whether another attempt is of no use; and whether the server takes none at all."""

    said: str
    is_final: bool = False
    is_away: bool = False


def _due_mails(now: datetime) -> QuerySet[Notification]:
    return Notification.objects.filter(_OF_ACTIVE, state=STATE.SENDING, next_attempt_at__lte=now, channel__isnull=False)


def _take_mail() -> Notification | None:
    """Take the next mail that is due, so that no other process has it for MAIL_LEASE; None if there is none."""
    with transaction.atomic():
        now = states.database_now()
        wanted = _due_mails(now).select_for_update(skip_locked=True, of=("self",))
        one = wanted.select_related("channel__owner").order_by("pk").first()
        if one is not None:
            one.attempts, one.next_attempt_at = one.attempts + 1, now + MAIL_LEASE
            one.save(update_fields=["attempts", "next_attempt_at"])
    return one


def _sent_by(server: Any, one: Notification) -> MailFailure | None:
    """Send a mail; return why it did not go out, None if it did. Its id is the same in each attempt."""
    channel = one.channel
    if channel is None:
        raise ValueError("A notification without a channel is not sent.")
    sender = settings.DEFAULT_FROM_EMAIL
    domain = sender.rpartition("@")[2].strip("> ") or "localhost"
    try:
        address = channel.value
        if refusal := _refusal(one, address, channel.owner):
            return refusal
        mail = EmailMessage(
            one.subject,
            one.text,
            sender,
            [address],
            headers={
                "Message-ID": f"<notification-{one.pk}@{domain}>",
                "Auto-Submitted": "auto-generated",
                "Content-Language": language_of(channel),
            },
            connection=server,
        )
        # Kept open for the next one.
        server.open()
        mail.send()
    except (OSError, smtplib.SMTPException) as error:
        return _refused(error) or _away(server, error)
    except Exception as error:
        event("mail_failed", level=logging.ERROR, exc_info=error, error=type(error).__name__)
        return MailFailure(f"The mail could not be written: {type(error).__name__}.", is_final=True)
    return None


def _refusal(one: Notification, address: str, owner: Any) -> MailFailure | None:
    """Return why a mail is not to be sent at all."""
    if one.attempts > len(MAIL_WAITS) + 1:
        # Another attempt might end the next process too.
        return MailFailure("Each process that sent it has ended meanwhile.", is_final=True)
    if not may_be_mailed(address, owner):
        # Rights were taken since the address was given.
        return MailFailure("Mail may no longer be sent to this address.", is_final=True)
    return None


def _refused(error: Exception) -> MailFailure | None:
    """Return what a server has against this one mail; None for what is wrong with the server."""
    said: bytes | str
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        what, (code, said) = "address", next(iter(error.recipients.values()))
    elif isinstance(error, smtplib.SMTPDataError):
        what, code, said = "mail", error.smtp_code, error.smtp_error
    else:
        return None
    if code == HANGS_UP or code < REFUSES:
        # It goes, or what it says is no answer of a mail server.
        return None
    return MailFailure(f"The mail server refused the {what}: {code} {_text(said)}", is_final=code >= FOR_GOOD)


def _away(server: Any, error: Exception) -> MailFailure:
    """Return that the server takes nothing now. What it told the operator's account is for the log alone."""
    with contextlib.suppress(Exception):
        server.close()
    event("mail_failed", level=logging.ERROR, error=" ".join(str(error).split())[:MESSAGE_MAX_LENGTH])
    return MailFailure("The mail server cannot be reached, or takes no mail from this service.", is_away=True)


def _text(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _note_mail(one: Notification, failure: MailFailure | None) -> None:
    """Write what came of an attempt, unless another process has taken the mail since."""
    now = states.database_now()
    values: dict[str, Any] = {"error": failure.said[:MESSAGE_MAX_LENGTH] if failure else ""}
    if failure is None:
        values |= {"state": STATE.SENT, "ended_at": now, "next_attempt_at": None}
    elif failure.is_final or one.attempts > len(MAIL_WAITS):
        values |= {"state": STATE.FAILED, "ended_at": now, "next_attempt_at": None}
    else:
        values |= {"next_attempt_at": now + MAIL_WAITS[one.attempts - 1]}
    Notification.objects.filter(pk=one.pk, state=STATE.SENDING, attempts=one.attempts).update(**values)
    if failure is None:
        event("mail_sent", notification=one.pk, attempt=one.attempts)
    else:
        event("mail_not_sent", notification=one.pk, attempt=one.attempts)


# What was sent


class Listed(NamedTuple):
    """A notification, and what is known of it now: `sent`, `failed`, `sending`, or `called` if its timer is gone."""

    notification: Notification
    state: str
    error: str


def listed(found: Sequence[Notification]) -> list[Listed]:
    """Return notifications with what came of them; of one that a timer sends, that is its delivery's state."""
    timers = [one.call_timer for one in found if one.call_timer is not None]
    ended = {one.timer_id: one for one in Delivery.objects.filter(timer__in=timers).latest_promised()}
    failed = [one.pk for one in ended.values() if one.state not in (State.SUCCEEDED, State.SCHEDULED) or one.attempts]
    last = _last_messages(failed)
    result = []
    for one in found:
        delivery = ended.get(one.call_timer) if one.call_timer else None
        if delivery is None:
            result.append(Listed(one, one.state, one.error))
        elif delivery.state == State.SUCCEEDED:
            result.append(Listed(one, STATE.SENT, ""))
        else:
            state = STATE.FAILED if delivery.is_final else STATE.SENDING
            result.append(Listed(one, state, delivery.fault or last.get(delivery.pk, "")))
    return result


def prune(*, older_than: timedelta, limit: int = PRUNE_ROWS) -> int:
    """Delete one batch of notifications that were made longer ago than `older_than`; return how many."""
    with connection.cursor() as cursor:
        # Along the primary key: later ones have higher ids.
        cursor.execute(
            """
            WITH oldest AS MATERIALIZED (
              SELECT id, created_at FROM scheduler_notification ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
            DELETE FROM scheduler_notification notification USING oldest
             WHERE notification.id = oldest.id
               AND oldest.created_at < statement_timestamp() - make_interval(secs => %s)
            """,
            [limit, older_than.total_seconds()],
        )
        return int(cursor.rowcount)
