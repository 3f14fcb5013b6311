#!/usr/bin/env python
"""Succeed if the worker, or the beat, of this machine does its work; else say in a sentence what is wrong.

    healthcheck.py worker [PID]
    healthcheck.py beat [PID]

Each notes about once a second that it is at work, and a worker how far its threads are. With a process number, that
process alone is looked at. Exits with 1 where it should be restarted, and with 75 where the database does not answer,
which a restart does not mend. Without Django, whose loading would cost far more than the question.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psycopg2  # type: ignore[import-untyped]
from psycopg2 import extensions, extras

# Longer than the time that makes the service not ready, because a restart costs the calls under way.
FRESH_SECONDS = 15
STUCK_SECONDS = 15
# The whole check. Docker gives it 10 seconds.
CHECK_SECONDS = 8
EX_AWAY = 75

# The latest sign of each process: its age, and for how long its starter and its ledger had not moved by then.
_SEEN = {
    "beat": """
SELECT name, extract(epoch FROM clock_timestamp() - seen_at)::float8, 0::float8, 0::float8
  FROM scheduler_beat WHERE starts_with(name, %(begin)s) ORDER BY seen_at DESC
""",
    "worker": """
SELECT name, extract(epoch FROM clock_timestamp() - seen_at)::float8,
       extract(epoch FROM seen_at - starter_at)::float8, extract(epoch FROM seen_at - ledger_at)::float8
  FROM scheduler_worker WHERE starts_with(name, %(begin)s) ORDER BY seen_at DESC
""",
}


def trouble(what: str, rows: list[tuple[str, float, float, float]]) -> str:
    """Return what is wrong with the processes of this machine; empty if all is well."""
    if not rows:
        return f"No {what} of this machine was ever seen at work."
    if rows[0][1] > FRESH_SECONDS:
        return f"No {what} of this machine was seen at work for {rows[0][1]:.0f} s."
    for name, age, starter, ledger in rows:
        for part, seconds in (("starter", starter), ("ledger", ledger)):
            if age <= FRESH_SECONDS and seconds > STUCK_SECONDS:
                return f"{what} {name}: its {part} has not moved for {seconds + age:.0f} s."
    return ""


def database_url() -> str:
    """Return the URL from the environment, from the file that it names, or the one that `scripts/run` noted."""
    if url := os.environ.get("DATABASE_URL"):
        return url
    if path := os.environ.get("DATABASE_URL_FILE"):
        return Path(path).read_text().strip()
    noted = Path(__file__).resolve().parents[1] / ".data" / "env"
    lines = noted.read_text().splitlines() if noted.exists() else []
    urls = [line.partition("=")[2] for line in lines if line.startswith("DATABASE_URL=")]
    return urls[0] if urls else sys.exit("DATABASE_URL is not set.")


def give_up(_: int, __: FrameType | None) -> NoReturn:
    raise TimeoutError


def main() -> int:
    match sys.argv[1:]:
        case [("worker" | "beat") as what, *rest] if len(rest) <= 1 and "".join(rest).isdigit() == bool(rest):
            pass
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    # The alarm cannot interrupt a wait in C.
    extensions.set_wait_callback(extras.wait_select)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(CHECK_SECONDS)
    try:
        connection = psycopg2.connect(database_url())
        with connection.cursor() as cursor:
            cursor.execute(_SEEN[what], {"begin": f"{socket.gethostname()}:{''.join(rest)}"})
            rows = cursor.fetchall()
        connection.close()
    except (psycopg2.Error, TimeoutError) as error:
        said = " ".join(str(error).split()) or f"no answer in {CHECK_SECONDS} s"
        print(f"The database does not answer: {said}", file=sys.stderr)
        return EX_AWAY
    found = trouble(what, [row for row in rows if not rest or row[0].endswith(f":{rest[0]}")])
    if found:
        print(found, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
