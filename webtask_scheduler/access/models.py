"""The tables of who may call, and of what was done; independent of timers."""

# The audit log and limits. Their classes stay at the end of this module.

from django.conf import settings
from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _


class AuditEntry(models.Model):
    """Who did what to which thing, through which door. Written by `access.audit`, never changed, pruned by age.

    Users, keys and things are plain values without foreign keys: an entry outlives them.
    """

    at = models.DateTimeField(_("at"), db_default=Now())
    # A stable word, such as timer.cancelled.
    action = models.CharField(_("action"), max_length=40)
    # What it was done to: timer, secret, key, host, limit, bulk or timers; and its id. Empty for many at once.
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
