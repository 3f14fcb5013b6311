"""The user who logs in with an e-mail address and a password; independent of timers."""

import hmac
from binascii import unhexlify
from collections.abc import Collection
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models, transaction
from django.db.models.functions import Lower
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice

from webtask_scheduler import vault
from webtask_scheduler.users import auditing

# Sent with `user` in the transaction that deletes one: other apps end there what is going on for that user.
user_deleted = Signal()


class UserQuerySet(models.QuerySet["User"]):
    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete users, each as `User.delete` does."""
        done = sum(user.delete()[0] for user in self)
        return done, {self.model._meta.label: done}  # noqa: SLF001 - as Django answers


class UserManager(BaseUserManager["User"]):
    """Creates users by e-mail; `createsuperuser` uses it."""

    use_in_migrations = True

    def get_queryset(self) -> UserQuerySet:
        return UserQuerySet(self.model, using=self._db)

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """Store and return a user. Raises ValueError if the e-mail is empty."""
        if not email:
            raise ValueError("A user needs an e-mail address.")
        user = self.model(email=self.normalize_email(email), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        """Store and return a user who may do everything in the admin."""
        return self.create_user(email, password, **(fields | {"is_staff": True, "is_superuser": True}))

    def get_by_natural_key(self, username: str | None) -> "User":
        # People type their address in any case; all spellings belong to one account.
        return self.get(email__iexact=username)


class User(AbstractUser):
    """A user named by e-mail.

    A deleted user stays as a row without name, address, password and rights, so that what the user made keeps its owner
    and becomes nobody else's.
    """

    username = None  # type: ignore[assignment]
    email = models.EmailField(_("e-mail address"), unique=True)
    deleted_at = models.DateTimeField(null=True, editable=False)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects: ClassVar[UserManager] = UserManager()  # type: ignore[assignment]

    class Meta(AbstractUser.Meta):
        # Forbids a second account that differs only in case.
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                name="user_email_unique_in_any_case",
                violation_error_message=_("A user with this e-mail address exists."),
            )
        ]

    def __str__(self) -> str:
        return self.email

    def save(self, *args: Any, **more: Any) -> None:
        """Store the user, and record what changed of who it is and what it may do."""
        update_fields: Collection[str] | None = more.get("update_fields")
        with transaction.atomic():
            stored = auditing.before(self, update_fields)
            is_new = self._state.adding
            # A log-in that brings an old hash up to date gives the same password.
            is_rehash = update_fields == ["password"] and getattr(self, "_password", None) is None
            is_rehash = is_rehash and self.has_usable_password()
            super().save(*args, **more)
            if stored is not None:
                auditing.saved(self, stored, is_rehash=is_rehash)
            elif is_new:
                auditing.created(self)

    def delete(self, *_: Any, **__: Any) -> tuple[int, dict[str, int]]:
        """Forget who the user is, for good, and tell the other apps. The row stays."""
        with transaction.atomic():
            # What is being made for the user meanwhile refers to the row: it is there before this, or waits for it.
            user = User.objects.select_for_update().filter(pk=self.pk, deleted_at=None).first()
            if user is None:
                return 0, {}
            auditing.deleted(user)
            user.email = f"deleted-{user.pk}@users.invalid"
            user.first_name = user.last_name = ""
            user.is_active = user.is_staff = user.is_superuser = False
            user.deleted_at = timezone.now()
            user.set_unusable_password()
            # Past `save`: that a user was deleted is one deed.
            super(User, user).save()
            user.groups.clear()
            user.user_permissions.clear()
            for device in (AppDevice, RecoveryDevice):
                device.objects.filter(user=user).delete()
            user_deleted.send(sender=User, user=user)
        self.refresh_from_db()
        return 1, {self._meta.label: 1}


class LoginFailures(models.Model):
    """Failed attempts to log in, of what a digest stands for; see `throttle`."""

    key = models.CharField(max_length=64, primary_key=True)
    failures = models.PositiveIntegerField(default=0)
    last_at = models.DateTimeField(default=timezone.now, db_index=True)
    free_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name = verbose_name_plural = "login failures"
        # Nobody looks at digests.
        default_permissions = ()

    def __str__(self) -> str:
        return self.key


class AppDevice(TOTPDevice):  # type: ignore[misc]  # django-otp has no types
    """An app that shows codes, as django-otp keeps it, with its key encrypted.

    `key` may be plain: rows from before keys were encrypted are, until `manage.py rotate_encryption`. To log in with
    one leaves it so: web processes of the version before, which run during an upgrade, can read no other form.
    """

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = "authenticator app"

    key: str

    @property
    def bin_key(self) -> bytes:
        """The key. Raises VaultError."""
        return unhexlify(vault.unseal(self.key) if vault.is_sealed(self.key) else self.key)

    def save(self, *args: Any, **more: Any) -> None:
        if self._state.adding and not vault.is_sealed(self.key):
            self.key = vault.seal(self.key)
        super().save(*args, **more)

    @classmethod
    def model_label(cls) -> str:
        # Sessions keep it, also for processes of releases that know no other.
        return str(TOTPDevice.model_label())


class RecoveryDevice(StaticDevice):  # type: ignore[misc]  # as above
    """The recovery codes of a user, as django-otp keeps them, each encrypted; `second_factor` makes them.

    Encrypted and not hashed, so that they outlive a change of keys. As with apps, older codes are plain.
    """

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = "recovery codes"

    def verify_token(self, token: str) -> bool:
        """Return whether a code is one of the device's; it is then used up. Raises VaultError."""
        allowed, __ = self.verify_is_allowed()
        if not allowed:
            return False
        found = None
        for one in self.token_set.all():
            code = vault.unseal(one.token) if vault.is_sealed(one.token) else one.token
            # All are looked at, whichever it is.
            if hmac.compare_digest(code.encode(), token.encode()):
                found = one
        if found is None:
            self.throttle_increment()
            return False
        found.delete()
        self.throttle_reset(commit=False)
        self.set_last_used_timestamp(commit=False)
        self.save()
        return True

    @classmethod
    def model_label(cls) -> str:
        return str(StaticDevice.model_label())
