"""How each process of the service is started: said here once, for the laptop, the containers, tests and benchmarks.

    python -m scripts.processes web|worker|upkeep|beat|flower    become that process

The names may be numbered, as in `worker-2`. HOST, PORT, FLOWER_PORT, WEB_WORKERS and NODE, which Flower shows behind
the @ of a worker's name, are read from the environment; whatever else it holds is for the settings.
"""

import os
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

# What each worker takes from the broker: deliveries, or whatever takes long.
QUEUES = {"worker": "celery", "upkeep": "upkeep"}
KINDS = ("web", *QUEUES, "beat", "flower")
# What Flower lists of a task. What it was about comes second, where people look for it.
COLUMNS = "name,args,state,received,runtime,worker,uuid"
# How long Flower waits for a worker before it starts without one, and how long it waits for an answer to each question.
WORKER_SECONDS = 20.0
PING_SECONDS = 1


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
    # Without Celery's banners: `config.celery_app` says in a line what it is that starts.
    unannounced = [*celery, "--quiet"]
    match kind:
        case "web":
            return [
                # With HTTP/1 alone a connection that says nothing is closed; while granian waits for a sign of which
                # version a client speaks, it has no time-out.
                *(sys.executable, "-m", "config.web", "--interface", "rsgi", "--no-ws", "--http", "1"),
                *("--host", host, "--port", setting("PORT", "8000")),
                *("--workers", setting("WEB_WORKERS", "2"), "--backlog", "1024"),
                *("--respawn-failed-workers", "--respawn-interval", "1", "--workers-kill-timeout", "3"),
                # `config.front` has the deadline for bodies.
                *("--http1-header-read-timeout", "15000"),
                "config.rsgi:application",
            ]
        case "worker" | "upkeep":
            # Its threads only take messages: settings.WEBTASK_CALLERS says how many calls are made side by side.
            pool = ["--pool", "threads", "--concurrency", "4", "--queues", queues or QUEUES[kind]]
            # Workers do not need each other's state; asking for it would cost a second at every start.
            quiet = ["--without-mingle", "--without-gossip"]
            return [*unannounced, "worker", *pool, "--hostname", f"{name}@{setting('NODE', '%h')}", *quiet]
        case "beat":
            # No pidfile: one that was left behind would keep the next from starting.
            own = ["--scheduler", scheduler] if scheduler else []
            return [*unannounced, "beat", "--pidfile", "", *own]
        case "flower":
            port = setting("FLOWER_PORT", "5555")
            # The settings say how its lines look and which are written.
            logs = "--logging=none"
            return [*celery, "flower", f"--address={host}", f"--port={port}", f"--tasks-columns={COLUMNS}", logs]
    raise ValueError(f"{name!r} is no process: one of {', '.join(KINDS)}.")


def become(name: str) -> NoReturn:
    """Turn into the process of that name. Raises ValueError for an unknown name."""
    words = command(name)
    if name.partition("-")[0] == "flower":
        ask_for_a_login()
        await_worker()
    os.execv(words[0], words)


def ask_for_a_login() -> None:
    """Have Flower ask for CELERY_FLOWER_USER and CELERY_FLOWER_PASSWORD, if they are set; exit where they must be.

    By the environment, because a command line is for all to read.
    """
    # Late, as below. Also where a login is not needed: a bad setting ends this process with one line, as the others.
    from django.conf import settings

    from config.settings import choose

    choose()
    needed = settings.WEBTASK_API_AUTH == "key"
    user, password = (os.environ.get(f"CELERY_FLOWER_{name}", "") for name in ("USER", "PASSWORD"))
    if password:
        os.environ["FLOWER_BASIC_AUTH"] = f"{user or 'flower'}:{password}"
    elif needed and not os.environ.get("FLOWER_BASIC_AUTH"):
        print("CELERY_FLOWER_PASSWORD is not set: with WEBTASK_API_AUTH=key, Flower asks for one.", file=sys.stderr)
        sys.exit(os.EX_CONFIG)


def await_worker() -> None:
    """Wait until a worker answers, but not for ever.

    Flower asks all workers once, at its start. If none answers, it warns four times and does not list any until it is
    asked to refresh.
    """
    # Late: `launch` imports this module too, and only Flower has use for them.
    from kombu.exceptions import OperationalError

    from config.celery_app import app

    deadline = time.monotonic() + WORKER_SECONDS
    while time.monotonic() < deadline:
        try:
            with app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=PING_SECONDS)
                if app.control.ping(timeout=PING_SECONDS, limit=1, connection=connection):
                    return
        except OperationalError:
            time.sleep(PING_SECONDS)


def main() -> None:
    if len(sys.argv) != 2:  # noqa: PLR2004 - the name
        sys.exit(__doc__)
    try:
        become(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
