"""Which settings a process uses where nobody says. Only the settings read the environment."""

import os
import sys
from pathlib import Path

# What `./scripts/run` leaves in its checkout, for this account alone.
_RUN_HERE = Path(__file__).resolve().parents[2] / ".data" / "env"


def choose() -> None:
    """Set DJANGO_SETTINGS_MODULE if it is not set: the local settings where `./scripts/run` was started before.

    Anywhere else the process ends with one line. A server whose settings were forgotten must not become a laptop's,
    which anybody may call.
    """
    if os.environ.get("DJANGO_SETTINGS_MODULE"):
        return
    if not os.access(_RUN_HERE, os.R_OK):
        print(
            "DJANGO_SETTINGS_MODULE is not set: give config.settings.production on a server; on your own machine start"
            " ./scripts/run once, or give config.settings.local.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(os.EX_CONFIG)
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings.local"
