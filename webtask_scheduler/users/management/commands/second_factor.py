"""`manage.py second_factor add|remove|list`: the codes that the admin asks for beside the password.

The key is shown once, at its making, and the codes of the app are asked for before it counts: a key that was not taken
over would keep its owner out.
"""

import base64
import io
import time
from typing import Any

import qrcode
from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils.translation import gettext as _
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticToken

from webtask_scheduler import terminal
from webtask_scheduler.access import actor
from webtask_scheduler.users import second_factor
from webtask_scheduler.users.models import AppDevice, User

TRIES = 3


class Command(terminal.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _(
            "Make, remove and list second factors: an app on a phone, and ten recovery codes for the day it is lost."
        )
        parser.add_argument("action", choices=["add", "remove", "list"])
        parser.add_argument("email", nargs="?", default="", help=_("whose; not for list"))
        parser.add_argument(
            "--noinput", action="store_false", dest="asks", help=_("with add: do not ask for a code of the app first")
        )

    @actor.at_shell()
    def handle(self, *__: Any, action: str, email: str, asks: bool, **___: Any) -> None:
        if action == "list":
            self._list()
            return
        user = User.objects.filter(email__iexact=email).first()
        if user is None:
            raise CommandError(_("There is no user %(email)r.") % {"email": email})
        if action == "add":
            self._add(user, asks=asks)
        else:
            self._remove(user)

    def _list(self) -> None:
        for user in User.objects.filter(is_staff=True, is_active=True).order_by("email"):
            has_one = AppDevice.objects.filter(user=user, confirmed=True).exists()
            left = StaticToken.objects.filter(device__user=user).count()
            said = _("second factor, %(left)s recovery codes left") if has_one else _("no second factor")
            self.stdout.write(f"{user.email!r}: {said % {'left': left}}")
        self.stdout.write(f"DJANGO_ADMIN_SECOND_FACTOR={settings.ADMIN_SECOND_FACTOR}")

    def _add(self, user: User, *, asks: bool) -> None:
        if AppDevice.objects.filter(user=user, confirmed=True).exists():
            raise CommandError(_("%(email)s has a second factor. Remove it first.") % {"email": user.email})
        device = AppDevice(user=user, name="app", confirmed=True)
        picture = io.StringIO()
        drawn = qrcode.QRCode(border=2)
        drawn.add_data(device.config_url)
        drawn.print_ascii(out=picture, invert=True)
        self.stdout.write(picture.getvalue())
        self.stdout.write(_("Scan this with an app such as Aegis, FreeOTP or Google Authenticator, or type the key:"))
        self.stdout.write(f"  {base64.b32encode(device.bin_key).decode()}\n  {device.config_url}\n")
        # Before the transaction: PostgreSQL ends one that waits for a person.
        if asks and not self._has_app(device):
            raise CommandError(_("The codes were not right. Nothing was stored; begin again."))
        codes = second_factor.add(device)
        self.stdout.write(_("The second factor of %(email)s is there.") % {"email": user.email})
        self.stdout.write(_("Recovery codes, each good for one log-in without the app; keep them elsewhere:"))
        for code in codes:
            self.stdout.write(f"  {code}")

    def _has_app(self, device: AppDevice) -> bool:
        """Return whether a person types a code of this device, which then is used up."""
        for __ in range(TRIES):
            try:
                given = input(_("The code that the app shows now: "))
            except EOFError:
                return False
            totp = TOTP(device.bin_key, device.step, device.t0, device.digits)
            totp.time = time.time()
            digits = "".join(given.split())
            if digits.isascii() and digits.isdigit() and totp.verify(int(digits), device.tolerance):
                device.last_t, device.drift = totp.t(), totp.drift
                return True
            self.stdout.write(_("This code is not right."))
        return False

    def _remove(self, user: User) -> None:
        if not second_factor.remove(user):
            raise CommandError(_("%(email)s has no second factor.") % {"email": user.email})
        self.stdout.write(_("%(email)s logs in with the password alone now.") % {"email": user.email})
