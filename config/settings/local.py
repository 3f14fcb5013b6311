"""A laptop: safe for development, nothing to configure."""

import os
import socket
from pathlib import Path

import environ

from config.listening import own_addresses

# Where `./scripts/run` notes the servers that it started, so that `manage.py` finds them too. Real variables win. It is
# for that account alone, and a container may run under another.
_servers = Path(__file__).resolve().parents[2] / ".data" / "env"
if os.access(_servers, os.R_OK):
    environ.Env.read_env(_servers)

from config.settings.base import *  # noqa: E402
from config.settings.base import api_auth, egress, encryption_keys, env, mail  # noqa: E402

DEBUG = env.bool("DJANGO_DEBUG", default=False)
# Signs the sessions of a service that listens on this machine only; production has no default.
SECRET_KEY = env.str("DJANGO_SECRET_KEY", default="local-development-only-not-a-secret-0123456789abcdef")
WEBTASK_API_AUTH = api_auth("open")
# A page of another name, which its DNS server leads to this machine, is refused. The names are those by which this
# machine and the containers of docker-compose.local.yml call it.
_machine = socket.gethostname().lower()
ALLOWED_HOSTS = env.list(
    "DJANGO_ALLOWED_HOSTS",
    default=[
        *("localhost", ".localhost", "127.0.0.1", "[::1]", "0.0.0.0", "[::]"),  # noqa: S104 - a name that is called
        *("django", "host.docker.internal"),
        *(_machine, f"{_machine}.local"),
        *own_addresses(),
    ],
)
# Everybody knows this key, and production refuses it.
WEBTASK_ENCRYPTION_KEYS = encryption_keys(default="local-development-only-not-a-secret-0123456=")
# Static files are served straight from the packages: no collectstatic on a laptop.
WHITENOISE_USE_FINDERS = True
STATIC_ROOT = None
# A laptop's timers call what runs on it and beside it.
WEBTASK_EGRESS = egress(allow="loopback private shared unspecified this-machine on-link")
# Mail is printed by the process of upkeep.
vars().update(mail("consolemail:"))
# Without a token.
METRICS_OPEN = True
# A receiver to try timers with. Its URL is given where workers do not reach it by the name that a browser uses.
WEBTASK_DEMO_RECEIVER = env.str("WEBTASK_DEMO_RECEIVER", default="/demo/receiver")
