"""`manage.py api_key create|list|revoke`: the keys by which programs call the API."""

from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.validators import validate_email
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from webtask_scheduler.access import actor, keys
from webtask_scheduler.access.models import ApiKey, Scope

DAYS_MOST = 36_500


class Command(BaseCommand):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _("Make, list and revoke the keys by which programs call the API.")
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        create = actions.add_parser("create", help=_("make a key and show it, this once"))
        create.add_argument("name", help=_("what it is for"))
        create.add_argument("--owner", required=True, metavar="EMAIL", help=_("the user whose timers it is for"))
        create.add_argument(
            "--service-account",
            action="store_true",
            help=_("make the owner, a user without a password, if there is no such user"),
        )
        create.add_argument(
            "--scope",
            action="append",
            choices=Scope.values,
            help=_("what it allows; may be repeated (default: %(scopes)s)") % {"scopes": ", ".join(_DEFAULT)},
        )
        create.add_argument("--days", type=int, help=_("after how many days it expires (default: never)"))
        find = actions.add_parser("list", help=_("show all keys, without the keys themselves"))
        find.add_argument("--owner", metavar="EMAIL", help=_("only those of this user"))
        revoke = actions.add_parser("revoke", help=_("refuse keys from now on"))
        revoke.add_argument("ids", nargs="+", type=int, metavar="ID", help=_("as `list` shows it"))

    @actor.at_shell()
    def handle(self, *__: Any, action: str, **options: Any) -> None:
        getattr(self, f"_{action}")(options)

    def _create(self, options: dict[str, Any]) -> None:
        days = options["days"]
        if days is not None and not 0 < days <= DAYS_MOST:
            raise CommandError(_("--days must be a number from 1 to %(most)s.") % {"most": DAYS_MOST})
        expires_at = timezone.now() + timedelta(days=days) if days else None
        try:
            with transaction.atomic():
                owner_id = _owner_id(options["owner"], may_make=options["service_account"])
                scopes = options["scope"] or _DEFAULT
                made = keys.make(name=options["name"], owner_id=owner_id, scopes=scopes, expires_at=expires_at)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        self.stderr.write(_("The key of %(owner)s. Copy it now: it is not shown again.") % {"owner": options["owner"]})
        # Alone on its stream, for scripts.
        self.stdout.write(made.text)

    def _list(self, options: dict[str, Any]) -> None:
        found = ApiKey.objects.select_related("owner").order_by("pk")
        if options["owner"]:
            found = found.filter(owner=_owner_id(options["owner"]))
        rows = [(_("ID"), _("PREFIX"), _("OWNER"), _("SCOPES"), _("LAST USED"), _("STATE"), _("NAME"))]
        rows += [
            (
                str(key.pk),
                key.prefix,
                str(key.owner),
                ",".join(key.scopes),
                _instant(key.last_used_at) or _("never"),
                _state(key),
                # A control character would reach the terminal.
                ascii(key.name)[1:-1] if not key.name.isprintable() else key.name,
            )
            for key in found
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
            self.stdout.write("  ".join(cells).rstrip())

    def _revoke(self, options: dict[str, Any]) -> None:
        wanted = set(options["ids"])
        found = ApiKey.objects.filter(pk__in=wanted)
        unknown = wanted - set(found.values_list("pk", flat=True))
        if unknown:
            # One mistyped id revokes nothing.
            shown = ", ".join(map(str, sorted(unknown)))
            raise CommandError(_("There is no API key %(ids)s; nothing was revoked.") % {"ids": shown})
        keys.revoke(found)
        for key in found.order_by("pk"):
            self.stdout.write(_("%(key)s is revoked") % {"key": key})


_DEFAULT = [Scope.TIMERS_READ.value, Scope.TIMERS_WRITE.value, Scope.TIMERS_BULK.value, Scope.SECRETS.value]


def _owner_id(email: str, *, may_make: bool = False) -> int:
    """Return the id of an active user, made as a service account if there is none and that is allowed.

    Raises CommandError, ValidationError.
    """
    users = get_user_model().objects
    user = users.filter(email__iexact=email).first()
    if user is None and may_make:
        validate_email(email)
        user = users.create_user(email)
    if user is None:
        text = _(
            "There is no user %(email)s. Make it with createsuperuser, in the admin, or here by --service-account."
        )
        raise CommandError(text % {"email": email})
    if not user.is_active:
        raise CommandError(_("The user %(email)s is not active.") % {"email": email})
    return int(user.pk)


def _instant(value: datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M}" if value else ""


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return _("revoked %(time)s") % {"time": _instant(key.revoked_at)}
    if key.expires_at and key.expires_at <= timezone.now():
        return _("expired %(time)s") % {"time": _instant(key.expires_at)}
    return _("until %(time)s") % {"time": _instant(key.expires_at)} if key.expires_at else _("in use")
