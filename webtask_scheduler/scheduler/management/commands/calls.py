"""`manage.py calls stop|resume|status`: the kill switch."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import CallStop, Delivery, State


class Command(BaseCommand):
    help = "Stop all calls, or those to one host, at once; resume them; show what is stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["stop", "resume", "status"])
        parser.add_argument("--host", default="", help="as in the URL, with its port if it has one; all if left out")
        parser.add_argument("--reason", default="", help="kept with the stop, for other operators")

    def handle(self, *_: Any, action: str, host: str, reason: str, **__: Any) -> None:
        where = f"to {host}" if host else "to all hosts"
        if action == "stop":
            services.stop_calls(host=host, reason=reason)
            self.stdout.write(f"Calls {where} are stopped. Those in flight may land; what comes due is held.")
        elif action == "resume":
            if not services.resume_calls(host=host):
                raise CommandError(f"Calls {where} are not stopped; `manage.py calls status` shows what is.")
            self.stdout.write(f"Calls {where} go on. What was held is called now, oldest first.")
        else:
            for stop in CallStop.objects.order_by("host"):
                reason = f" ({stop.reason})" if stop.reason else ""
                since = f"{stop.created_at:%Y-%m-%d %H:%M:%S}"
                self.stdout.write(f"{stop.host or 'all hosts'}: stopped since {since}{reason}")
            self.stdout.write(f"{Delivery.objects.filter(state=State.HELD).count()} deliveries held")
