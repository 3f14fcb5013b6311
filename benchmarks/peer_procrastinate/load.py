"""Defer jobs; `python -m benchmarks.peer_procrastinate.load < JSON` of [[due in seconds since 1970, URL], ...]."""

import json
import sys
from datetime import UTC, datetime

from benchmarks.peer_procrastinate.app import app, call


def main() -> None:
    with app.open():
        for due, url in json.load(sys.stdin):
            call.configure(schedule_at=datetime.fromtimestamp(due, UTC)).defer(url=url)


if __name__ == "__main__":
    main()
