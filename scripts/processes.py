"""How each process of the service is started: said here once, for the laptop, the containers, tests and benchmarks.

    python -m scripts.processes web|worker|upkeep|beat|flower    become that process

The names may be numbered, as in `worker-2`. HOST, PORT, FLOWER_PORT, WEB_WORKERS and LOG_LEVEL are read from the
environment.
"""

import os
import sys
from collections.abc import Mapping

# What each worker takes from the broker: deliveries, or whatever takes long.
QUEUES = {"worker": "celery", "upkeep": "upkeep"}
KINDS = ("web", *QUEUES, "beat", "flower")
# What Flower lists of a task. What it was about comes second, where people look for it.
COLUMNS = "name,args,state,received,runtime,worker,uuid"


def command(
    name: str,
    *,
    environment: Mapping[str, str] | None = None,
    queues: str | None = None,
    scheduler: str | None = None,
) -> list[str]:
    """Return the command line of a process.

    It runs a module of this Python, because a long path breaks the first line of a script. `queues` and `scheduler`
    replace the shipped ones. Raises ValueError for an unknown name.
    """
    settings = os.environ if environment is None else environment

    def setting(key: str, default: str) -> str:
        return settings.get(key) or default

    kind = name.partition("-")[0]
    host = setting("HOST", "127.0.0.1")
    celery = [sys.executable, "-m", "celery", "-A", "config.celery_app"]
    level = ["-l", setting("LOG_LEVEL", "INFO")]
    match kind:
        case "web":
            return [
                *(sys.executable, "-m", "granian", "--interface", "wsgi", "--no-ws"),
                *("--host", host, "--port", setting("PORT", "8000")),
                *("--workers", setting("WEB_WORKERS", "2"), "--blocking-threads", "4", "--backlog", "1024"),
                *("--respawn-failed-workers", "--respawn-interval", "1", "--workers-kill-timeout", "3"),
                "config.wsgi:application",
            ]
        case "worker" | "upkeep":
            # Its threads only take messages: settings.WEBTASK_CALLERS says how many calls are made side by side.
            pool = ["--pool", "threads", "--concurrency", "4", "--queues", queues or QUEUES[kind]]
            # Workers do not need each other's state; asking for it would cost a second at every start.
            quiet = ["--without-mingle", "--without-gossip"]
            return [*celery, "worker", *pool, "--hostname", f"{name}@%h", *quiet, *level]
        case "beat":
            # No pidfile: one that was left behind would keep the next from starting.
            own = ["--scheduler", scheduler] if scheduler else []
            return [*celery, "beat", "--pidfile", "", *own, *level]
        case "flower":
            port = setting("FLOWER_PORT", "5555")
            return [*celery, "flower", f"--address={host}", f"--port={port}", f"--tasks-columns={COLUMNS}"]
    raise ValueError(f"{name!r} is no process: one of {', '.join(KINDS)}.")


def main() -> None:
    if len(sys.argv) != 2:  # noqa: PLR2004 - the name
        sys.exit(__doc__)
    try:
        words = command(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
