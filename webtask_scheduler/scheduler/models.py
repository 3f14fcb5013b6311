"""The tables: timers, their deliveries (the queue), the deliveries' attempts, and supporting tables.

A timer's row is wide and cold. A delivery's row is narrow and hot: it is the queue, and PostgreSQL is the truth about
it. The rules are constraints in the database, so that no code path can write an impossible row.
"""

import json
import math
import uuid
from datetime import datetime, timedelta
from typing import Any

import uuid_utils.compat
from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Cast, Coalesce
from django.db.models.lookups import Exact
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django_celery_beat.models import PeriodicTask

from webtask_scheduler import vault
from webtask_scheduler.scheduler.rules import answers
from webtask_scheduler.scheduler.rules.hosts import canonical_host
from webtask_scheduler.scheduler.rules.recurrence import COLUMNS, Recurrence

# The name that every PeriodicTask of a timer carries. It lives in queues and dashboards and never changes.
TASK_NAME = "webtask_scheduler.scheduler.tasks.call_timer"

# More than the longest name that can resolve, with a port.
HOST_MAX_LENGTH = 261
URL_MAX_LENGTH = 2048
EXCERPT_MAX_LENGTH = 2048
NAME_MAX_LENGTH = 200
CRON_MAX_LENGTH = 200
# A key of at most 63 characters, "=", and a value of as many.
LABEL_MAX_LENGTH = 127
KEY_MAX_LENGTH = 255
# The column's bound. Replays and interruptions count too, so it is far beyond any retry policy. The start that would
# pass it ends the delivery instead.
ATTEMPTS_BOUND = 30_000
FAULT_MAX_LENGTH = 300
# Encrypted: a secret of 64 bytes takes some 230 characters.
SECRET_MAX_LENGTH = 400
MESSAGE_MAX_LENGTH = 300
# "host:process id" of a process of ours.
PROCESS_MAX_LENGTH = 100


def new_id() -> uuid.UUID:
    """Return a UUIDv7, so that rows made one after the other are neighbours in the index."""
    return uuid_utils.compat.uuid7()


def host_of(web_url: str) -> str:
    """Return the canonical host of a URL, as Timer.host has it."""
    return canonical_host(web_url)


class State(models.TextChoices):
    """The states of a delivery. Every change of state is a guarded update by a statement in `queue`."""

    SCHEDULED = (
        "scheduled",
        _("Scheduled"),
    )  # waits for next_attempt_at; a retry waits here too, `attempts` tells them apart
    CLAIMED = "claimed", _("Claimed")  # a beat took it and rang for a worker; no call was made
    RUNNING = "running", _("Running")  # a worker is calling
    PAUSED = "paused", _("Paused")  # a person disabled it
    HELD = "held", _("Held")  # a person stopped all calls, or those to its host
    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")  # the dead letters
    CANCELLED = "cancelled", _("Cancelled")
    MISSED = "missed", _("Missed")  # later than its allowed lateness


LEASED = (State.CLAIMED, State.RUNNING)
FINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.MISSED)


class GivenField(models.JSONField):
    """JSON stored as it was given, including the order of its members: PostgreSQL's json, not Django's jsonb."""

    def db_type(self, connection: Any) -> str:  # noqa: ARG002 - Django's signature
        return "json"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        # psycopg2 parses the type json itself.
        return super().from_db_value(value, expression, connection) if isinstance(value, str) else value

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        # Django adapts to jsonb, which would sort the members.
        if value is None or hasattr(value, "as_sql"):
            return super().get_db_prep_value(value, connection, prepared)
        return json.dumps(value)


class ClockTimestamp(models.Func):
    """The database's clock at this instant; `Now` is the start of the transaction."""

    function = "clock_timestamp"
    arity = 0
    output_field = models.DateTimeField()


# Lanes of the queue. There are few, because a claim looks into each; a flood to one host fills one of them.
LANES = 64
# Every 64th delivery of a timer is in the index of timers that have had many. A power of two.
MARKED_EVERY = 64


# What a flow has of its owner's id: 25 bits, above the 32 of the host.
OWNER_BITS = 0x1FF_FFFF


def _flow() -> Any:
    """Return the expression of Timer.flow: six bits of lane, 25 of the owner's id, 32 of a hash of the host."""
    owner: Any = Coalesce(F("owner_id"), 0, output_field=models.BigIntegerField()).bitand(OWNER_BITS)
    hashed = models.Func(F("host"), function="hashtext", output_field=models.IntegerField())
    host: Any = Cast(hashed, models.BigIntegerField()).bitand(0xFFFF_FFFF)
    lane: Any = owner.bitxor(host).bitand(LANES - 1)
    return lane.bitleftshift(57).bitor(owner.bitleftshift(32)).bitor(host)


class Timer(models.Model):
    """A URL and when to call it. Its state is that of its latest promised delivery, so the two cannot disagree."""

    id = models.UUIDField(_("id"), primary_key=True, default=new_id, editable=False)
    # Null after the PeriodicTask is deleted, which cancels the timer and keeps its record.
    periodic_task = models.OneToOneField(PeriodicTask, on_delete=models.SET_NULL, null=True, related_name="timer")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        # A deleted user stays as a row. Without an owner, a timer would be anybody's where the API is open.
        on_delete=models.PROTECT,
        null=True,
        related_name="timers",
        verbose_name=_("owner"),
    )
    web_url = models.CharField(_("web URL"), max_length=URL_MAX_LENGTH)
    # Canonical host of web_url, so that one host has one name here: see rules.hosts.
    host = models.CharField(_("host"), max_length=HOST_MAX_LENGTH)
    # Which flow its deliveries belong to: those of one owner to one host. The queue is fair among flows.
    flow = models.GeneratedField(expression=_flow(), output_field=models.BigIntegerField(), db_persist=True)
    created_at = models.DateTimeField()
    name = models.CharField(_("name"), max_length=NAME_MAX_LENGTH, blank=True, default="")
    # Options beyond a URL and a time, under the API's names and only if they differ from the default: how it is called,
    # its retry policy, labels, metadata, callbacks; and `depth`, how many calls led to its creation. Null for a plain
    # timer, as most are.
    options = GivenField(null=True)
    # Who made it besides its owner: see access.actor.Actor.to_store. The audit log has no entry for a timer's creation,
    # because the timer's own row says all of it. Null for a callback, and for what code made.
    made_by = GivenField(null=True)
    # The schedule of a recurring timer; these columns are the truth. It is five fields in a time zone, or an interval
    # whose first moment is starts_at. Both are empty for a timer that is called once.
    cron = models.CharField(max_length=CRON_MAX_LENGTH, blank=True, default="")
    timezone = models.CharField(max_length=64, blank=True, default="")
    every_seconds = models.FloatField(null=True)
    starts_at = models.DateTimeField(null=True)
    ends_at = models.DateTimeField(null=True)
    max_occurrences = models.PositiveIntegerField(null=True)
    # A first attempt later than this is not made, and the delivery is missed. Null means no limit.
    max_lateness_seconds = models.FloatField(_("max lateness seconds"), null=True)
    # The delivery whose outcome this callback reports; null for a timer that is no callback. It has no constraint,
    # because that delivery may be pruned first.
    outcome_of = models.UUIDField(null=True)

    class Meta:
        verbose_name = _("timer")
        verbose_name_plural = _("timers")
        constraints = [
            models.CheckConstraint(
                condition=Q(cron="") | Q(every_seconds__isnull=True), name="timer_one_kind_of_schedule"
            ),
            models.CheckConstraint(
                condition=Q(every_seconds__isnull=True) | Q(every_seconds__gte=1, starts_at__isnull=False),
                name="timer_every_has_an_anchor",
            ),
            models.CheckConstraint(
                condition=Q(cron="") & Q(timezone="") | ~Q(cron="") & ~Q(timezone=""),
                name="timer_zone_iff_cron",
            ),
            models.CheckConstraint(
                condition=~Q(cron="")
                | Q(every_seconds__isnull=False)
                | Q(starts_at__isnull=True, ends_at__isnull=True, max_occurrences__isnull=True),
                name="timer_bounds_only_if_recurring",
            ),
            models.CheckConstraint(
                condition=Q(max_occurrences__isnull=True) | Q(max_occurrences__gte=1), name="timer_occurs_once_at_least"
            ),
            models.CheckConstraint(
                condition=Q(max_lateness_seconds__isnull=True) | Q(max_lateness_seconds__gte=0),
                name="timer_lateness_not_negative",
            ),
        ]
        indexes = [
            # Serves the admin's and the list's filter by host, newest first.
            models.Index(F("host"), F("id").desc(), name="timer_host_idx"),
            # Serves the list's filter "recurring", newest first.
            models.Index(
                F("id").desc(), name="timer_recurring_idx", condition=~Q(cron="") | Q(every_seconds__isnull=False)
            ),
            # Serves services.quotas, which adds up the rates of an owner's recurring timers. Being an expression, it is
            # not taken for a list's, which has an order.
            models.Index(
                Coalesce("owner", 0),
                name="timer_owner_recurring_idx",
                condition=~Q(cron="") | Q(every_seconds__isnull=False),
            ),
            # Serves the list of callbacks of a delivery.
            models.Index(F("outcome_of"), name="timer_outcome_idx", condition=Q(outcome_of__isnull=False)),
        ]

    def __str__(self) -> str:
        return gettext("timer %(id)s") % {"id": self.pk}

    @property
    def recurrence(self) -> Recurrence:
        """Return the schedule of a timer that recurs. Raises ScheduleError for one that is called once."""
        return Recurrence.read({name: getattr(self, name) for name in COLUMNS})

    @property
    def recurring(self) -> bool:
        return bool(self.cron) or self.every_seconds is not None


class TimerLabel(models.Model):
    """One label of a timer, for finding it; the labels that are shown are in the timer's options."""

    timer = models.ForeignKey(Timer, on_delete=models.CASCADE, related_name="label_rows", db_index=False)
    # "key=value"; a key has no "=".
    label = models.CharField(max_length=LABEL_MAX_LENGTH)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["timer", "label"], name="label_once_per_timer")]
        indexes = [
            # Serves the list's filter by label, newest first.
            models.Index(F("label"), F("timer").desc(), name="label_timer_idx"),
        ]

    def __str__(self) -> str:
        return self.label


# Timer.recurring in SQL, for the row "timer".
RECURRING = "(timer.cron <> '' OR timer.every_seconds IS NOT NULL)"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def promised(self) -> "DeliveryQuerySet":
        """Leave out the extra deliveries that a person asked for with "run now"."""
        return self.filter(extra=False)

    def latest_promised(self) -> "DeliveryQuerySet":
        """Keep the latest promised delivery of each timer, whose state is the timer's status."""
        return self.promised().order_by("timer", "-number").distinct("timer")

    def open(self) -> "DeliveryQuerySet":
        """Keep deliveries that are not final."""
        return self.filter(finished_at__isnull=True)


class Delivery(models.Model):
    """The whole effort for one promised due time, over all attempts."""

    # Sent as `webhook-id` with every attempt, so that a receiver can drop a duplicate.
    id = models.UUIDField(_("id"), primary_key=True, default=new_id, editable=False)
    # No index of its own: delivery_timer_number_unique begins with it.
    timer = models.ForeignKey(Timer, on_delete=models.CASCADE, related_name="deliveries", db_index=False)
    # Counts a timer's deliveries in the order in which they were made.
    number = models.PositiveIntegerField(_("number"))
    # Counts the promised moments of a schedule from 1, also if one was moved; max_occurrences bounds it.
    occurrence = models.PositiveIntegerField(default=1)
    # Made by "run now", or replayed, in addition to the promised one.
    extra = models.BooleanField(_("extra"), default=False)
    # A copy of the timer's, so that the claim is fair without reading timers.
    flow = models.BigIntegerField(default=0, db_default=0)
    lane = models.GeneratedField(
        expression=Cast(F("flow").bitrightshift(57), models.SmallIntegerField()),
        output_field=models.SmallIntegerField(),
        db_persist=True,
    )
    # The promise. Never changed: a reschedule cancels this delivery and makes another.
    due_at = models.DateTimeField()
    # When the claim may take it; equals due_at at first.
    next_attempt_at = models.DateTimeField()
    state = models.CharField(max_length=9, choices=State.choices, default=State.SCHEDULED)
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    # When a replay began fresh attempts, and how many had been made before.
    replayed_at = models.DateTimeField(null=True)
    attempts_before = models.PositiveSmallIntegerField(default=0)
    # When the latest attempt was started; null before the first.
    started_at = models.DateTimeField(null=True)
    lease_token = models.UUIDField(_("lease token"), null=True)
    lease_expires_at = models.DateTimeField(_("lease expires at"), null=True)
    cancel_requested_at = models.DateTimeField(_("cancel requested at"), null=True)
    finished_at = models.DateTimeField(null=True)
    # Why this service itself could not go on with the delivery and failed it; null otherwise.
    fault = models.CharField(_("fault"), max_length=FAULT_MAX_LENGTH, null=True)
    # When a person dismissed it as a dead letter, so that it is no longer counted as one to look at. Null before, and
    # again once it is replayed.
    dismissed_at = models.DateTimeField(null=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        constraints = [
            models.UniqueConstraint(fields=["timer", "number"], name="delivery_timer_number_unique"),
            # Deliveries of one timer do not overlap, except that a cancelled call in flight may still be ending.
            models.UniqueConstraint(
                fields=["timer"],
                condition=Q(extra=False, finished_at__isnull=True, cancel_requested_at__isnull=True),
                name="delivery_one_open_per_timer",
            ),
            models.CheckConstraint(condition=Q(state__in=State.values), name="delivery_state_known"),
            models.CheckConstraint(
                condition=Q(state__in=LEASED, lease_token__isnull=False, lease_expires_at__isnull=False)
                | (~Q(state__in=LEASED) & Q(lease_token__isnull=True, lease_expires_at__isnull=True)),
                name="delivery_leased_iff_claimed_or_running",
            ),
            models.CheckConstraint(
                condition=Q(state__in=FINAL, finished_at__isnull=False)
                | (~Q(state__in=FINAL) & Q(finished_at__isnull=True)),
                name="delivery_finished_iff_final",
            ),
            models.CheckConstraint(condition=Q(next_attempt_at__gte=F("due_at")), name="delivery_never_early"),
            models.CheckConstraint(
                condition=Q(attempts__lte=ATTEMPTS_BOUND) & (Q(attempts=0) | Q(started_at__isnull=False)),
                name="delivery_attempts_bounded",
            ),
            models.CheckConstraint(
                condition=Q(cancel_requested_at__isnull=True) | Q(state__in=[State.RUNNING, State.CANCELLED]),
                name="delivery_cancel_requested_while_running",
            ),
        ]
        indexes = [
            # Serves retention.trim: finds timers that have had many deliveries by few entries.
            models.Index(
                F("timer"),
                F("number"),
                name="delivery_many_idx",
                condition=Q(Exact(F("number").bitand(MARKED_EVERY - 1), 0)),
            ),
            # Serves the lists of scheduled deliveries, by due time. The claim must never walk along all that is due, so
            # its statements omit the condition on `extra` that would let the planner choose this index.
            models.Index(
                F("next_attempt_at"), name="delivery_due_idx", condition=Q(state=State.SCHEDULED, extra=False)
            ),
            # Serves the lists by due time: what was due before and is tried again later. What waits for its first
            # attempt is not in it, so it costs nothing when a timer is made, claimed or called.
            models.Index(
                F("next_attempt_at"),
                F("due_at"),
                name="delivery_again_idx",
                condition=Q(state=State.SCHEDULED, extra=False, next_attempt_at__gt=F("due_at")),
            ),
            # Serves the claim from a lane that is not crowded, in exactly the order in which it reads.
            models.Index(F("lane"), F("next_attempt_at"), name="delivery_lane_idx", condition=Q(state=State.SCHEDULED)),
            # Serves the claim from a crowded lane, flow by flow; a lane is a range of flows.
            models.Index(F("flow"), F("next_attempt_at"), name="delivery_flow_idx", condition=Q(state=State.SCHEDULED)),
            # Serves reclaim.reclaim_expired.
            models.Index(F("lease_expires_at"), name="delivery_lease_idx", condition=Q(state__in=LEASED)),
            # Serves claims.release_held.
            models.Index(F("id"), name="delivery_held_idx", condition=Q(state=State.HELD)),
            # Serves services.quotas, which counts an owner's paused timers.
            models.Index(F("flow"), name="delivery_paused_idx", condition=Q(state=State.PAUSED)),
            # Serves services.notifying, which reads what failed since it last looked. What succeeds never enters it.
            models.Index(
                F("finished_at"),
                F("id"),
                name="delivery_lost_idx",
                condition=Q(state__in=[State.FAILED, State.MISSED]),
            ),
            # Serves retention.prune.
            models.Index(F("finished_at"), name="delivery_finished_idx", condition=Q(finished_at__isnull=False)),
            # Serves services.letters: dead letters that nobody dismissed. An owner's flows are a range of each lane.
            models.Index(
                F("flow"),
                F("finished_at"),
                name="delivery_dead_idx",
                condition=Q(state__in=[State.FAILED, State.MISSED], dismissed_at__isnull=True),
            ),
            # Serves the lists of deliveries that no longer wait, by due time, in the order of their pages. It holds all
            # that is asked of those that are passed over, also whose they are, so that 20,000 take some milliseconds.
            models.Index(
                fields=["state", "due_at", "id"],
                include=["timer", "extra", "flow"],
                name="delivery_past_flow_idx",
                condition=Q(state__in=[*FINAL, State.PAUSED]),
            ),
        ]

    def __str__(self) -> str:
        return gettext("delivery %(id)s") % {"id": self.pk}

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def time_left_seconds(self, *, now: datetime) -> int:
        """Return the whole seconds until the due time, rounded up; 0 from then on."""
        if self.is_final:
            return 0
        return max(0, math.ceil((self.due_at - now) / timedelta(seconds=1)))

    def waits_again(self, *, now: datetime) -> bool:
        """Return whether it waits for a later attempt: a retry, or a replay that is spread over time."""
        tried = self.attempts > 0 or self.replayed_at is not None
        return self.state == State.SCHEDULED and tried and self.next_attempt_at > now


class ErrorKind(models.TextChoices):
    """Why an attempt did not succeed; empty for one that did."""

    STATUS = "status", _("Status")  # an answer that is not a success
    TIMEOUT = "timeout", _("Timeout")  # connecting, waiting or reading took longer than allowed
    DNS = "dns", _("Dns")  # the name did not resolve
    CONNECT = "connect", _("Connect")  # refused, unreachable
    TLS = "tls", _("Tls")  # the certificate or the handshake
    CONNECTION = "connection", _("Connection")  # broken off after connecting
    PROTOCOL = "protocol", _("Protocol")  # an answer that is not HTTP
    REDIRECT = "redirect", _("Redirect")  # a redirect that may not be followed, or one too many
    URL = "url", _("Url")  # a URL that cannot be called
    REFUSED = "refused", _("Refused")  # an address, host or port that this deployment does not call
    INTERRUPTED = "interrupted", _("Interrupted")  # this service was shut down in the middle
    LOST = "lost", _("Lost")  # the process that called vanished; the outcome is unknown


# The steps of an attempt, in the order in which Attempt.stages holds them: append only. A call on a kept connection has
# no `resolved`, `connected` and `secured`, and one without TLS no `secured`.
STAGES = ("claimed", "published", "received", "resolved", "connected", "secured", "first_byte")


class Attempt(models.Model):
    """One HTTP call. Written once, when it ends."""

    # What a list of many leaves out, as it is most of a row.
    DETAILS = ("excerpt", "stages", "headers", "worker")

    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="history", db_index=False)
    number = models.PositiveSmallIntegerField(_("number"))
    meant_for = models.DateTimeField()
    started_at = models.DateTimeField()
    # Null if the process vanished.
    duration_ms = models.PositiveIntegerField(_("duration (ms)"), null=True)
    status_code = models.PositiveSmallIntegerField(_("status code"), null=True)
    error = models.CharField(_("error"), max_length=11, blank=True, choices=ErrorKind.choices)
    # A sentence for a person; empty for a success.
    message = models.CharField(_("message"), max_length=MESSAGE_MAX_LENGTH, blank=True)
    # The beginning of the answer's body.
    excerpt = models.CharField(_("excerpt"), max_length=EXCERPT_MAX_LENGTH, blank=True)
    # When it reached each of STAGES, in microseconds from `started_at`, negative before it; null where not known.
    stages = ArrayField(models.IntegerField(null=True), null=True)
    # The answer's headers as `rules.answers` keeps them; null where none are kept.
    headers = models.TextField(_("headers of the answer"), null=True)
    # The process that called, as in Worker.name; null for an attempt that was lost, and for those before release 0.3.
    worker = models.CharField(_("worker"), max_length=PROCESS_MAX_LENGTH, null=True)

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        constraints = [
            models.UniqueConstraint(fields=["delivery", "number"], name="attempt_delivery_number_unique"),
            models.CheckConstraint(condition=Q(number__gte=1), name="attempt_numbered_from_one"),
            models.CheckConstraint(condition=Q(started_at__gte=F("meant_for")), name="attempt_never_early"),
            models.CheckConstraint(condition=Q(error__in=["", *ErrorKind.values]), name="attempt_error_known"),
        ]

    def __str__(self) -> str:
        return gettext("attempt %(number)s") % {"number": self.number}

    @property
    def lateness_ms(self) -> float:
        """Return how long after the time it was meant for the attempt was started."""
        return round((self.started_at - self.meant_for) / timedelta(milliseconds=1), 1)

    @property
    def stages_ms(self) -> dict[str, float]:
        """Return the stages that are known, in milliseconds from the start."""
        reached = zip(STAGES, self.stages or (), strict=False)
        return {name: round(at / 1000, 1) for name, at in reached if at is not None}

    @property
    def answered(self) -> answers.Kept | None:
        """Return the headers of the answer that are kept; None where none are."""
        return None if self.headers is None else answers.read(self.headers)


class SigningSecret(models.Model):
    """A Standard Webhooks secret of an owner: calls to a host are signed with each that is for the host."""

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        related_name="signing_secrets",
        db_index=False,
        verbose_name=_("owner"),
    )
    # Encrypted by `vault`; rows of releases up to 0.2 are plain until they are rotated.
    secret = models.CharField(_("secret"), max_length=SECRET_MAX_LENGTH)
    # Canonical hosts whose calls are signed with it, "*.example.com" for all below one; empty for all hosts. It lets no
    # receiver pass a signed call on to another one that trusts the same secret.
    hosts = ArrayField(
        models.CharField(max_length=HOST_MAX_LENGTH), verbose_name=_("hosts"), default=list, db_default=[], blank=True
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("signing secret")
        verbose_name_plural = _("signing secrets")
        indexes = [
            # Serves attempts.start_attempts, for timers with an owner and without one.
            models.Index(Coalesce("owner", 0), name="signing_secret_owner_idx"),
        ]

    def __str__(self) -> str:
        return gettext("signing secret %(id)s") % {"id": self.pk}

    @property
    def value(self) -> str:
        """Return the secret itself. Raises VaultError."""
        return vault.unseal_or_plain(self.secret)

    @property
    def hint(self) -> str:
        """Return the secret's last characters, by which its owner knows it; none if its key is missing."""
        try:
            return f"…{self.value[-4:]}"
        except vault.VaultError:
            return "…"


class EncryptionKey(models.Model):
    """The id of a key that was encrypted with: `/readyz` reports one that is missing from the settings."""

    id = models.CharField(primary_key=True, max_length=vault.KEY_ID_LENGTH)
    noted_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.id


class IdempotencyKey(models.Model):
    """A client's key against a request that takes effect twice, with the answer that was given."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, db_index=False)
    key = models.CharField(max_length=KEY_MAX_LENGTH)
    # SHA-256 of the request.
    fingerprint = models.BinaryField()
    status_code = models.PositiveSmallIntegerField()
    headers = models.JSONField()
    body = models.TextField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "key"], name="idempotency_key_once_per_owner", nulls_distinct=False
            )
        ]
        indexes = [
            # Serves idempotency.prune.
            models.Index(F("created_at"), name="idempotency_key_age_idx"),
        ]

    def __str__(self) -> str:
        return self.key


class BulkOperation(models.Model):
    """An action on all timers that fit a filter, done page by page, with its progress."""

    class Action(models.TextChoices):
        CANCEL = "cancel", _("Cancel")
        PAUSE = "pause", _("Pause")
        RESUME = "resume", _("Resume")
        REPLAY = "replay", _("Replay")
        DISMISS = "dismiss", _("Dismiss")
        SPREAD = "spread", _("Spread")

    id = models.UUIDField(_("id"), primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, db_index=False, verbose_name=_("owner")
    )
    action = models.CharField(max_length=7, choices=Action.choices)
    # In the form that the API's list takes.
    filter = models.JSONField()
    dry_run = models.BooleanField(default=False)
    # Replays are spread at random over this time from now, and what waits from the beginning of its time; null means
    # all at once.
    spread_seconds = models.PositiveIntegerField(null=True)
    # Whether it is for the timers of all owners, as a superuser may ask; else for those of its own.
    everyone = models.BooleanField(default=False, db_default=False)
    # Where the next page begins; empty at the beginning.
    cursor = models.TextField(blank=True, default="")
    # Timers that fit so far, and those among them that were changed.
    matched = models.PositiveIntegerField(_("matched"), default=0)
    changed = models.PositiveIntegerField(_("changed"), default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)
    # When a person stopped it; what it had changed by then stays.
    stopped_at = models.DateTimeField(null=True)
    # Why it could not go on; empty otherwise.
    error = models.CharField(max_length=300, blank=True, default="")

    class Meta:
        verbose_name = _("bulk operation")
        verbose_name_plural = _("bulk operations")
        indexes = [
            # Serves retention.prune_bulk.
            models.Index(F("finished_at"), name="bulk_finished_idx", condition=Q(finished_at__isnull=False)),
            # Serves tasks.bulk, which reads unfinished operations.
            models.Index(F("id"), name="bulk_unfinished_idx", condition=Q(finished_at__isnull=True)),
        ]

    def __str__(self) -> str:
        return gettext("bulk operation %(id)s") % {"id": self.pk}

    @property
    def status(self) -> str:
        """Return running, done, stopped, or failed."""
        if self.finished_at is None:
            return "running"
        if self.stopped_at is not None:
            return "stopped"
        return "failed" if self.error else "done"


class BulkChange(models.Model):
    """A timer that a bulk operation paused or resumed, and nothing else since, so that it can be undone."""

    # Its index serves the filter "changed_by", newest first.
    pk = models.CompositePrimaryKey("operation", "timer")
    operation = models.ForeignKey(BulkOperation, on_delete=models.CASCADE, related_name="changes", db_index=False)
    # It has no constraint, because the timer may be pruned first.
    timer = models.UUIDField()

    class Meta:
        indexes = [
            # Serves states.forget_changes.
            models.Index(F("timer"), name="bulkchange_timer_idx"),
        ]

    def __str__(self) -> str:
        return str(self.timer)


class CallStop(models.Model):
    """A kill switch: while the row exists, no call is started to this host, or to any host if it is empty.

    `services.stop_calls` writes the rows; there an empty host has to be given as `everything`.
    """

    host = models.CharField(
        _("host"),
        unique=True,
        max_length=HOST_MAX_LENGTH,
        blank=True,
        help_text=_("As in the URL, with its port if it has one."),
    )
    reason = models.CharField(_("reason"), max_length=200, blank=True)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("call stop")
        verbose_name_plural = _("call stops")

    def __str__(self) -> str:
        if not self.host:
            return gettext("calls to all hosts are stopped")
        return gettext("calls to %(host)s are stopped") % {"host": self.host}


def masked_mail(shown_address: str) -> str:
    """Return a channel's address for people whose channel it is not: of a mail address, who it is is left out."""
    who, at, domain = shown_address.rpartition("@")
    return f"{who[:1]}***@{domain}" if at else shown_address


class NotificationChannel(models.Model):
    """Where an owner is told of what happened to the owner's timers, and of which events."""

    class Kind(models.TextChoices):
        MAIL = "mail", _("Mail")
        SLACK = "slack", _("Slack")
        WEBHOOK = "webhook", _("Webhook")

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, db_index=False, verbose_name=_("owner")
    )
    name = models.CharField(_("name"), max_length=NAME_MAX_LENGTH, blank=True, default="")
    kind = models.CharField(max_length=7, choices=Kind.choices)
    # A mail address or a URL, encrypted by `vault`: whoever has the URL may write to it.
    address = models.TextField()
    # The same without what is secret.
    shown_address = models.CharField(max_length=HOST_MAX_LENGTH + 20)
    # Only of timers with this label, in the form of TimerLabel; empty for all of the owner's.
    label = models.CharField(max_length=LABEL_MAX_LENGTH, blank=True, default="")
    # Of its messages, one of settings.LANGUAGES; empty for the service's own.
    language = models.CharField(_("language"), max_length=10, blank=True, default="", db_default="")
    # The events: a delivery failed or was missed; a recurring timer failed so many times in a row, null for never; it
    # succeeded again; and, for people who may see the whole service, calls are late.
    on_dead_letter = models.BooleanField(default=True)
    failures_in_row = models.PositiveSmallIntegerField(null=True)
    on_recovery = models.BooleanField(default=False)
    on_late = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    # When it was made or last resumed: it is not told of what happened before.
    active_since = models.DateTimeField()
    paused_at = models.DateTimeField(null=True)
    # When its latest message was made; the next one waits for WEBTASK_NOTIFY_SECONDS.
    told_at = models.DateTimeField(null=True)
    # Whether it was told that calls are late, and not yet that they no longer are.
    is_told_late = models.BooleanField(default=False)

    class Meta:
        verbose_name = _("notification channel")
        verbose_name_plural = _("notification channels")
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=["mail", "slack", "webhook"]), name="channel_kind_known"),
            models.CheckConstraint(
                condition=Q(failures_in_row__isnull=True) | Q(failures_in_row__gte=2), name="channel_row_is_a_row"
            ),
        ]
        indexes = [
            # Serves services.channels and services.notifying, which ask for those of an owner.
            models.Index(F("owner"), name="channel_owner_idx"),
            # Serves services.notifying, which asks first whether there is any.
            models.Index(F("active_since"), name="channel_active_idx", condition=Q(paused_at__isnull=True)),
        ]

    def __str__(self) -> str:
        return self.name or masked_mail(self.shown_address)

    @property
    def value(self) -> str:
        """Return the address itself. Raises VaultError."""
        return vault.unseal_or_plain(self.address)


class Notification(models.Model):
    """A message to a channel: first what is gathered for it, then what was sent and what came of it."""

    class State(models.TextChoices):
        GATHERING = "gathering"  # more may be added until the channel may be told again
        SENDING = "sending"  # a mail that upkeep has yet to send, or tries again
        CALLED = "called"  # a timer sends it, and knows what came of it
        SENT = "sent"
        FAILED = "failed"

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, db_index=False)
    # Null once it is deleted: what was sent stays listed.
    channel = models.ForeignKey(NotificationChannel, on_delete=models.SET_NULL, null=True)
    # Copies, because a channel may be edited or deleted.
    kind = models.CharField(max_length=7, choices=NotificationChannel.Kind.choices)
    shown_address = models.CharField(max_length=HOST_MAX_LENGTH + 20)
    state = models.CharField(max_length=9, choices=State.choices, default=State.GATHERING)
    # What it is about, as rules.messages has it.
    gathered = models.JSONField()
    subject = models.CharField(max_length=MESSAGE_MAX_LENGTH, blank=True, default="")
    text = models.TextField(blank=True, default="")
    created_at = models.DateTimeField()
    # When the text was made.
    made_at = models.DateTimeField(null=True)
    # The timer that calls the channel's URL. It has no constraint, because it may be pruned first.
    call_timer = models.UUIDField(null=True)
    # Of a mail: how often it was tried, and when it is tried next; while one is being sent, when that counts as lost.
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    error = models.CharField(max_length=MESSAGE_MAX_LENGTH, blank=True, default="")

    class Meta:
        verbose_name = _("notification")
        verbose_name_plural = _("notifications")
        constraints = [
            # Two processes that notice the same add to one message.
            models.UniqueConstraint(
                fields=["channel"], condition=Q(state="gathering"), name="notification_one_gathers_per_channel"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["gathering", "sending", "called", "sent", "failed"]),
                name="notification_state_known",
            ),
        ]
        indexes = [
            # Serves the list of what was sent.
            models.Index(F("owner"), F("id").desc(), name="notification_owner_idx"),
            # Serves services.notifying.
            models.Index(F("id"), name="notification_open_idx", condition=Q(state__in=["gathering", "sending"])),
        ]

    def __str__(self) -> str:
        return self.subject or gettext("notification %(id)s") % {"id": self.pk}


class ToldFailure(models.Model):
    """A recurring timer of whose failure a channel was told, and not yet of its success."""

    channel = models.ForeignKey(NotificationChannel, on_delete=models.CASCADE, db_index=False)
    # It has no constraint, because the timer may be pruned.
    timer = models.UUIDField()
    # The latest failed delivery that was noticed.
    number = models.PositiveIntegerField()
    # Whether it was told of so many failures in a row.
    is_row = models.BooleanField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["channel", "timer"], name="told_failure_once")]

    def __str__(self) -> str:
        return str(self.timer)


class NotificationCursor(models.Model):
    """Up to where failed deliveries were noticed, along delivery_lost_idx. Whoever locks the row notices."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    finished_at = models.DateTimeField()
    delivery = models.UUIDField()
    # The latest ToldFailure that was looked at, in the order of their ids; 0 begins again.
    told_failure = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="notification_cursor_is_one")]

    def __str__(self) -> str:
        return str(self.finished_at)


class Leader(models.Model):
    """The one beat that runs stock periodic tasks and upkeep, by a lease on the database's clock."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    name = models.CharField(max_length=100)
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(id=1), name="leader_is_one")]

    def __str__(self) -> str:
        return self.name


class Beat(models.Model):
    """A beat process and when it was last seen at work; `/readyz` requires a fresh one."""

    name = models.CharField(primary_key=True, max_length=100)
    seen_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Worker(models.Model):
    """A worker process, when it was last seen, and when its threads last moved; see `facts.note_worker`."""

    class Kind(models.TextChoices):
        CALLS = "calls"
        UPKEEP = "upkeep"

    name = models.CharField(max_length=100)
    kind = models.CharField(max_length=6, choices=Kind.choices)
    seen_at = models.DateTimeField()
    # When its starter and its ledger last completed a turn.
    starter_at = models.DateTimeField()
    ledger_at = models.DateTimeField()
    # Deliveries that it holds, and calls under way.
    held = models.PositiveIntegerField()
    running = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["name", "kind"], name="worker_once_per_kind"),
            models.CheckConstraint(condition=Q(kind__in=["calls", "upkeep"]), name="worker_kind_known"),
        ]

    def __str__(self) -> str:
        return self.name


def _counts() -> Any:
    """Return the column of a histogram, or of other counts in a fixed order."""
    return ArrayField(models.BigIntegerField())


class Minute(models.Model):
    """What a process counted in a minute; or all of them in an hour; or, with 0 seconds, a process in all its time.

    `queue.rollups` writes and reads the rows, and says what each column counts.
    """

    # Its index serves all reads: the rows of one kind by time, and those of all time.
    pk = models.CompositePrimaryKey("seconds", "begins_at", "process")
    # How long the time is that the row covers: 60, 3600, or 0 for all time.
    seconds = models.PositiveIntegerField()
    begins_at = models.DateTimeField()
    # Empty for a row of all processes.
    process = models.CharField(max_length=100)
    # The latest that was added: one that is sent twice is added once.
    batch = models.UUIDField()
    stored_at = models.DateTimeField()
    # Calls that a worker begins side by side; 0 for other processes.
    slots = models.PositiveIntegerField()
    first_late = _counts()
    first_late_seconds = models.FloatField()
    retry_late = _counts()
    retry_late_seconds = models.FloatField()
    durations = _counts()
    duration_seconds = models.FloatField()
    claims = _counts()
    claim_seconds = models.FloatField()
    publishes = _counts()
    publish_seconds = models.FloatField()
    outcomes = _counts()
    succeeded = models.BigIntegerField()
    failed = models.BigIntegerField()
    cancelled = models.BigIntegerField()
    missed = models.BigIntegerField()
    retried = models.BigIntegerField()
    created = models.BigIntegerField()
    put_off = models.BigIntegerField()
    reclaimed = models.BigIntegerField()
    led_seconds = models.FloatField()
    window_most = models.BigIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(seconds__in=[0, 60, 3600]), name="minute_span_known"),
        ]

    def __str__(self) -> str:
        return f"{self.seconds} s from {self.begins_at} of {self.process or 'all processes'}"


class HostHour(models.Model):
    """What a process counted of the calls to one host in an hour, or all processes; see `queue.rollups`."""

    # Its index serves reads by time, of all hosts or of one.
    pk = models.CompositePrimaryKey("hour", "host", "process")
    hour = models.DateTimeField()
    # "other hosts" for those without a row of their own.
    host = models.CharField(max_length=HOST_MAX_LENGTH)
    # As in Minute, like the next.
    process = models.CharField(max_length=100)
    batch = models.UUIDField()
    calls = models.BigIntegerField()
    failed = models.BigIntegerField()
    put_off = models.BigIntegerField()
    late = _counts()
    durations = _counts()

    def __str__(self) -> str:
        return f"{self.host} in the hour from {self.hour}"
