"""The user who logs in with an e-mail address and a password; independent of timers."""

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser, BaseUserManager
from django.db import models, transaction
from django.db.models.functions import Lower
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

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

    def delete(self, *_: Any, **__: Any) -> tuple[int, dict[str, int]]:
        """Forget who the user is, for good, and tell the other apps. The row stays."""
        with transaction.atomic():
            # What is being made for the user meanwhile refers to the row: it is there before this, or waits for it.
            user = User.objects.select_for_update().filter(pk=self.pk, deleted_at=None).first()
            if user is None:
                return 0, {}
            user.email = f"deleted-{user.pk}@users.invalid"
            user.first_name = user.last_name = ""
            user.is_active = user.is_staff = user.is_superuser = False
            user.deleted_at = timezone.now()
            user.set_unusable_password()
            user.save()
            user.groups.clear()
            user.user_permissions.clear()
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
