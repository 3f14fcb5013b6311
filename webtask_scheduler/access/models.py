"""The tables of who may call, and of what was done; independent of timers."""

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils.translation import gettext_lazy as _

NAME_MAX_LENGTH = 100


class Scope(models.TextChoices):
    """What a key allows. `scheduler.urls` says which scope each operation of the API asks for."""

    TIMERS_READ = "timers:read", _("Look at timers")
    TIMERS_WRITE = "timers:write", _("Make and change timers")
    TIMERS_BULK = "timers:bulk", _("Change many timers at once")
    SECRETS = "secrets", _("Manage signing secrets")
    # Whoever makes keys can make one with every scope, so this is the strongest.
    ADMIN = "admin", _("Manage keys; a superuser also sees the timers of all owners")


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
