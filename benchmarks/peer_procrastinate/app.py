"""The application and its task; `procrastinate --app=benchmarks.peer_procrastinate.app.app worker`."""

import os
from typing import Any

import procrastinate  # type: ignore[import-not-found,unused-ignore]  # only in the peer's own environment
import requests

app: Any = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))


@app.task(name="call")  # type: ignore[untyped-decorator,unused-ignore]  # as above
def call(url: str) -> None:
    requests.post(url, json={"due": True}, timeout=10)
