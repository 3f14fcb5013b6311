"""The tables of who may call, and of what was done; independent of timers."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

NAME_MAX_LENGTH = 100


class Scope(models.TextChoices):
    """What a key allows. `scheduler.urls` says which scope each operation of the API asks for."""

    TIMERS_READ = "timers:read", _("Look at timers")
    TIMERS_WRITE = "timers:write", _("Make and change timers")
    TIMERS_BULK = "timers:bulk", _("Change many timers at once")
    SECRETS = "secrets", _("Manage signing secrets")
    # Whoever makes keys can make one with every scope, so this is the strongest.
    ADMIN = "admin", _("Manage keys and read the audit log; a superuser also sees what is of all owners")


class ApiKey(models.Model):
    """A key by which a program calls the API for its owner. It is shown once, when it is made; `access.keys` makes it.

    A service account is a user without a password.
    """

    name = models.CharField(_("name"), max_length=NAME_MAX_LENGTH)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys", verbose_name=_("owner")
    )
    # How the key begins, to tell it from others.
    prefix = models.CharField(_("prefix"), max_length=20)
    # SHA-256 of the key. It needs no slow hash: a key has 238 random bits, which nobody tries out.
    digest = models.BinaryField(max_length=32, unique=True)
    scopes = ArrayField(models.CharField(max_length=20, choices=Scope.choices), verbose_name=_("scopes"))
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    # Null for a key that does not expire.
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    # To the minute.
    last_used_at = models.DateTimeField(_("last used at"), null=True)
    revoked_at = models.DateTimeField(_("revoked at"), null=True)

    class Meta:
        verbose_name = _("API key")
        verbose_name_plural = _("API keys")
        constraints = [
            models.CheckConstraint(condition=models.Q(scopes__contained_by=Scope.values), name="api_key_scopes_known"),
            models.CheckConstraint(condition=models.Q(scopes__len__gt=0), name="api_key_scopes_given"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class AuditEntry(models.Model):
    """Who did what to which thing, through which door. Written by `access.audit`, never changed, pruned by age.

    Users, keys and things are plain values without foreign keys: an entry outlives them.
    """

    at = models.DateTimeField(_("at"), db_default=Now())
    # A stable word, such as timer.cancelled.
    action = models.CharField(_("action"), max_length=40)
    # What it was done to: timer, secret, key, host, limit, bulk, user, group, calendar or timers; and its id, empty for
    # many at once.
    kind = models.CharField(_("kind"), max_length=16)
    object_id = models.CharField(_("id"), max_length=261, blank=True)
    # Whose it is; null for what belongs to nobody or to the deployment.
    owner_id = models.BigIntegerField(_("owner"), null=True)
    # See access.actor.
    user_id = models.BigIntegerField(_("user id"), null=True)
    name = models.CharField(_("by"), max_length=254, blank=True)
    key = models.CharField(_("key"), max_length=64, blank=True)
    address = models.CharField(_("address"), max_length=45, blank=True)
    through = models.CharField(_("through"), max_length=16, blank=True)
    request_id = models.CharField(_("request id"), max_length=128, blank=True)
    # What changed, without secrets.
    before = models.JSONField(_("before"), null=True)
    after = models.JSONField(_("after"), null=True)

    class Meta:
        verbose_name = _("audit entry")
        verbose_name_plural = _("audit entries")
        # Pruning reads along the primary key: the oldest entries have the lowest ids.
        indexes = [
            # Serves what was done to one thing, the latest first.
            models.Index(F("kind"), F("object_id"), F("id").desc(), name="audit_object_idx"),
            # Serves an owner's own list, the latest first.
            models.Index(F("owner_id"), F("id").desc(), name="audit_owner_idx"),
        ]

    def __str__(self) -> str:
        what = f"{self.kind} {self.object_id}".strip()
        return gettext("%(action)s, %(what)s") % {"action": self.action, "what": what}


class Limit(models.Model):
    """What one owner may do and have where it differs from the settings; see `access.limits`."""

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="limit", verbose_name=_("owner")
    )
    # Null is what the setting says, 0 is without limit.
    requests_per_second = models.FloatField(_("requests a second"), null=True, blank=True)
    timers_waiting = models.PositiveIntegerField(_("timers waiting"), null=True, blank=True)
    recurring_per_second = models.FloatField(_("recurring calls a second"), null=True, blank=True)
    bulk_open = models.PositiveIntegerField(_("bulk operations at once"), null=True, blank=True)

    class Meta:
        verbose_name = _("limit")
        verbose_name_plural = _("limits")
        constraints = [
            models.CheckConstraint(
                condition=~models.Q(requests_per_second__lt=0) & ~models.Q(recurring_per_second__lt=0),
                name="limit_not_negative",
            )
        ]

    def __str__(self) -> str:
        return gettext("limits of %(owner)s") % {"owner": self.owner}


class CalendarAddress(models.Model):
    """The secret in the address of a user's calendar. It is shown once; `access.calendars` makes it."""

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="calendar", verbose_name=_("owner")
    )
    # SHA-256 of the secret, as of an API key.
    digest = models.BinaryField(max_length=32, unique=True)
    created_at = models.DateTimeField(_("created at"))

    class Meta:
        verbose_name = _("address of a calendar")
        verbose_name_plural = _("addresses of calendars")

    def __str__(self) -> str:
        return gettext("calendar of %(owner)s") % {"owner": self.owner}
