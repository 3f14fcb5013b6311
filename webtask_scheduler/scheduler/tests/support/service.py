"""The whole service as real processes: web, worker, beat, as the shipped commands start them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from django.conf import settings
from django.db import connection

from scripts.processes import command

CHECKOUT = Path(__file__).resolve().parents[4]
START_SECONDS = 60.0


def database_url() -> str:
    """Return the URL of the test database."""
    values = connection.settings_dict
    host = values["HOST"] or values["OPTIONS"].get("host", "")
    user = quote(values["USER"]) + (":" + quote(values["PASSWORD"], safe="") if values["PASSWORD"] else "")
    if host.startswith("/"):
        return f"postgresql://{user}@/{values['NAME']}?host={host}"
    return f"postgresql://{user}@{host}:{values['PORT'] or 5432}/{values['NAME']}"


class Service:
    """Starts and ends processes by their ids; everything that they print is kept for the failure's report."""

    scheduler = "webtask_scheduler.scheduler.beat:TimerScheduler"

    def __init__(self) -> None:
        self.broker = redis.Redis.from_url(settings.REDIS_URL)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = Path(tempfile.mkdtemp(prefix="service-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.environment = os.environ | {
            "DATABASE_URL": database_url(),
            "REDIS_URL": settings.REDIS_URL,
            "DJANGO_SETTINGS_MODULE": "config.settings.local",
        }

    def start(self, *names: str, wait: bool = True) -> None:
        """Start processes: `web`, `worker`, `beat`, or several of a kind as `worker-2`."""
        for name in names:
            with (self.logs / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    self.command(name),
                    # A group of its own: granian's workers outlive a parent that is killed.
                    start_new_session=True,
                    cwd=CHECKOUT,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
        if wait:
            for name in names:
                self._wait_for(name)

    def command(self, name: str) -> list[str]:
        """Return how a process is started: one web worker, and one worker for both queues, as a small machine has."""
        settings = {"PORT": str(self.port), "WEB_WORKERS": "1"}
        return command(name, environment=settings, queues="celery,upkeep", scheduler=self.scheduler)

    def signal(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """End a process as a crash would."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, name: str, *, seconds: float = 60.0) -> int:
        """Ask a process to end and return its exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(seconds)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.broker.flushdb()
        self.broker.close()

    def post(self, body: dict[str, Any], path: str = "/timer") -> tuple[int, dict[str, Any]]:
        return self._request(
            urllib.request.Request(
                f"http://127.0.0.1:{self.port}{path}",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
                method="POST",
            )
        )

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return self._request(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"))

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def _request(self, request: urllib.request.Request) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up(name):
            assert self.processes[name].poll() is None, f"{name} ended: {self.log(name)}"
            assert time.monotonic() < deadline, f"{name} did not come up: {self.log(name)}"
            time.sleep(0.05)

    def _is_up(self, name: str) -> bool:
        kind = name.partition("-")[0]
        if kind == "web":
            with contextlib.suppress(OSError):
                return self.get("/healthz")[0] == 200
            return False
        if kind == "worker":
            return "ready." in self.log(name)
        return "beat: Starting..." in self.log(name)


@contextlib.contextmanager
def running(*names: str, scheduler: str = Service.scheduler) -> Iterator[Service]:
    """Run processes for the length of a test, and show what they said where it fails."""
    service = Service()
    service.scheduler = scheduler
    try:
        service.broker.flushdb()
        service.start(*names)
        yield service
    except BaseException:
        for log in sorted(service.logs.iterdir()):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")
        raise
    finally:
        service.close()
        shutil.rmtree(service.logs)
