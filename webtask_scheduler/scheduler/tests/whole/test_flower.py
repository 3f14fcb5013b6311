"""Flower as it is started: what its pages show of a real worker, and whom it lets in."""

import base64
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, running

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

SECRETS = {"broker": "the-brokers-own-password", "database": "the-databases-own-password", "dsn": "the-key-of-the-dsn"}


def get(url, *, login=""):
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")


@contextlib.contextmanager
def flower(environment, log):
    """Run Flower; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "scripts.processes", "flower"]
    environment = environment | {"FLOWER_PORT": str(port)}
    with log.open("wb") as written:
        process = subprocess.Popen(words, cwd=CHECKOUT, env=environment, stdout=written, stderr=written)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if get(f"{address}/healthcheck")[0] == 200:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def test_pages_show_no_password_of_broker_database_or_anything_else(tmp_path):
    with running() as service:
        # A user of this Redis with a password, as a server's has one.
        service.broker.acl_setuser(
            "flower-test",
            enabled=True,
            passwords=[f"+{SECRETS['broker']}"],
            keys=["*"],
            channels=["*"],
            categories=["+@all"],
        )
        parts = urlsplit(service.environment["REDIS_URL"])
        where = parts.netloc.rpartition("@")[2]
        service.environment |= {
            "REDIS_URL": parts._replace(netloc=f"flower-test:{SECRETS['broker']}@{where}").geturl(),
            "SENTRY_DSN": f"http://{SECRETS['dsn']}@127.0.0.1:9/1",
            "METRICS_TOKEN": SECRETS["database"],
        }
        try:
            service.start("worker")
            with flower(service.environment, tmp_path / "flower.log") as address:
                page_of_worker = f"{address}/worker/worker@{socket.gethostname()}"
                deadline = time.monotonic() + 30
                while get(page_of_worker)[0] != 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                status, page = get(page_of_worker)
                # It is the page with the configuration, and it is that of this worker.
                assert status == 200
                assert "broker_url" in page
                assert re.search(r"redis://[^<]*\*\*\*\*", page)
                pages = page + "".join(get(f"{address}{path}")[1] for path in ("/", "/workers", "/broker", "/tasks"))
                assert [name for name, secret in SECRETS.items() if secret in pages] == []
                # Settings of Django are nobody's business there.
                assert "SECRET_KEY" not in pages
                # And what changes something is closed without a login, also where looking is open.
                assert get(f"{address}/api/workers")[0] == 401
            assert [name for name, secret in SECRETS.items() if secret in (tmp_path / "flower.log").read_text()] == []
        finally:
            service.broker.acl_deluser("flower-test")


def test_flower_asks_for_a_login_where_one_is_set(tmp_path):
    with running() as service:
        login = {"CELERY_FLOWER_USER": "ada", "CELERY_FLOWER_PASSWORD": "correct horse battery"}
        environment = service.environment | login | {"WEBTASK_API_AUTH": "key"}
        with flower(environment, tmp_path / "flower.log") as address:
            for path in ("/", "/workers", "/broker", "/tasks", "/api/workers"):
                assert get(f"{address}{path}")[0] == 401
                assert get(f"{address}{path}", login="ada:wrong")[0] == 401
            assert get(f"{address}/workers", login="ada:correct horse battery")[0] == 200
            # No command line shows it.
            shown = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
            assert "correct horse battery" not in shown


def test_flower_does_not_start_without_a_login_where_the_api_wants_keys():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "FLOWER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.processes", "flower"],
        cwd=CHECKOUT,
        env=environment
        | {
            "WEBTASK_API_AUTH": "key",
            "DJANGO_SETTINGS_MODULE": "config.settings.local",
            "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
            "REDIS_URL": "redis://127.0.0.1:1/0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == "CELERY_FLOWER_PASSWORD is not set: with WEBTASK_API_AUTH=key, Flower asks for one.\n"
