"""Builds the image of docker-compose.local.yml and runs its stack, as README's section Docker says.

It has a project name and ports of its own, so that it may run beside a stack that is in use, and leaves nothing behind.
Checked are: that `up` builds what is not there, that all becomes healthy and ready, that a timer calls a receiver on
this machine, that Flower knows workers by readable names, and that the commands of README work in the container.

    python -m scripts.images        needs a Docker engine with Compose; exits with 0 if all is well
"""

import base64
import contextlib
import http.server
import json
import os
import queue
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = "docker-compose.local.yml"
# A first build fetches two hundred wheels.
UP_SECONDS = 1200
PYTEST_SECONDS = 600
READY_SECONDS = 180.0
FIRED_SECONDS = 30.0
# Some that use the database, the broker, hypothesis and files beside the code.
TESTS = (
    "webtask_scheduler/scheduler/tests/rules/test_recurrence.py",
    "webtask_scheduler/scheduler/tests/api/test_probes.py",
    "webtask_scheduler/scheduler/tests/test_commands.py",
)


class Failure(Exception):  # noqa: N818
    """Says what does not work."""


class Stack:
    """The stack of one project."""

    def __init__(self) -> None:
        self.project = f"webtask-check-{secrets.token_hex(3)}"
        self.web, self.flower = free_ports(2)

    def compose(self, *words: str, seconds: float = 120, **environment: str) -> str:
        """Run a command of Compose and return what it printed. Raises Failure."""
        ports = {"WEB_PORT": str(self.web), "FLOWER_PORT": str(self.flower), "LOG_LEVEL": "INFO"}
        given = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        words = (words[0], *given, *words[1:])
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.project, "--file", FILE, *words],
            cwd=ROOT,
            env=os.environ | ports,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise Failure(f"docker compose {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        return done.stdout

    def execute(self, *words: str, seconds: float = 120, **environment: str) -> str:
        """Run a command in the container of the web server, as README does."""
        return self.compose("exec", "-T", "django", "/entrypoint", *words, seconds=seconds, **environment)

    def unhealthy(self) -> list[str]:
        """Return the services that are not healthy, or not yet."""
        states = [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]
        return sorted(state["Service"] for state in states if state["Health"] != "healthy")

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return request(f"http://127.0.0.1:{self.web}{path}")

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return request(f"http://127.0.0.1:{self.web}{path}", body)

    def remove(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")
        subprocess.run(
            ["docker", "image", "rm", f"{self.project}_local_django"], stdout=subprocess.DEVNULL, check=False
        )


def request(url: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers), timeout=10
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("0.0.0.0", 0))) for _ in range(count)]  # noqa: S104 - ports that are free on all
        return [one.getsockname()[1] for one in held]


def wait(ready: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # A web server that is not there yet, or slow.
        with contextlib.suppress(OSError):
            if ready():
                return True
        time.sleep(0.5)
    return False


@contextmanager
def receiver(address: str) -> Iterator[tuple[int, "queue.Queue[str]"]]:
    """Listen at the address that containers know as host.docker.internal; yield the port and the paths called."""
    called: queue.Queue[str] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            called.put(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    try:
        server = http.server.ThreadingHTTPServer((address, 0), Handler)
    except OSError:
        # Docker Desktop: that address is in its virtual machine, which reaches this one's loopback.
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], called
    finally:
        server.shutdown()
        server.server_close()


def check_up(stack: Stack) -> str:
    said = stack.compose("up", "--detach", seconds=UP_SECONDS)
    if re.search(r"(django|celery\w+|flower) Pulling", said):
        raise Failure(f"Compose tried to pull the image that it is to build:\n{said[-2000:]}")
    if not wait(lambda: stack.get("/readyz")[0] == 200, READY_SECONDS):  # noqa: PLR2004
        raise Failure(f"/readyz is not ready: {stack.get('/readyz')}")
    if not wait(lambda: stack.unhealthy() == [], READY_SECONDS):
        raise Failure(f"Not healthy: {', '.join(stack.unhealthy())}")
    return "all healthy, and ready"


def check_timer(stack: Stack) -> str:
    address = stack.compose("exec", "-T", "django", "getent", "ahostsv4", "host.docker.internal").split()[0]
    with receiver(address) as (port, called):
        url = f"http://host.docker.internal:{port}/called"
        _, timer = stack.post("/timer", {"seconds": 2, "web_url": url})
        try:
            called.get(timeout=FIRED_SECONDS)
        except queue.Empty:
            raise Failure(f"{url} was not called: {stack.get('/timer/' + timer['task_id'])}") from None
        path = f"/timer/{timer['task_id']}"
        if not wait(lambda: stack.get(path)[1]["status"] == "succeeded", READY_SECONDS):
            raise Failure(f"The timer did not succeed: {stack.get(path)}")
        return f"called on this machine, {stack.get(path)[1]['attempts'][0]['lateness_ms']} ms late"


def check_flower(stack: Stack) -> str:
    environment = (ROOT / ".envs/.local/.django").read_text()
    user, password = re.findall(r"^CELERY_FLOWER_(?:USER|PASSWORD)=(.*)$", environment, re.MULTILINE)
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    _, workers = request(f"http://127.0.0.1:{stack.flower}/api/workers", Authorization=f"Basic {login}")
    expected = {f"worker-1@{stack.project}", f"upkeep-1@{stack.project}"}
    if not expected <= set(workers):
        raise Failure(f"Flower knows {sorted(workers)}, not {sorted(expected)}.")
    said = stack.compose("logs", "--no-log-prefix", "flower")
    if "Inspect method" in said:
        raise Failure(f"Flower warns at its start:\n{said}")
    return f"lists {', '.join(sorted(workers))}"


def check_commands(stack: Stack) -> str:
    stack.execute(
        *("python", "manage.py", "createsuperuser", "--noinput"),
        DJANGO_SUPERUSER_EMAIL="check@example.com",
        DJANGO_SUPERUSER_PASSWORD=secrets.token_hex(16),
    )
    said = stack.execute("pytest", "-q", *TESTS, seconds=PYTEST_SECONDS)
    return f"a user was made; pytest: {said.strip().splitlines()[-1]}"


CHECKS = {"up": check_up, "timer": check_timer, "flower": check_flower, "commands": check_commands}


def main() -> int:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        sys.exit("docker compose does not work here: a Docker engine with the Compose plugin is needed.")
    stack = Stack()
    try:
        for name, check in CHECKS.items():
            begun = time.monotonic()
            said = check(stack)
            print(f"{name}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    except (Failure, subprocess.TimeoutExpired, OSError) as failure:
        print(f"{name} FAILED: {failure}", file=sys.stderr)
        with contextlib.suppress(Failure, subprocess.TimeoutExpired):
            print(stack.compose("logs", "--tail", "40")[-8000:], file=sys.stderr)
        return 1
    finally:
        stack.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
