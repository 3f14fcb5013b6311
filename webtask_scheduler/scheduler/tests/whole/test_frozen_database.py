"""Every request has an end: a PostgreSQL of its own is frozen under a real web process and a worker."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import psutil
import psycopg2
import pytest

from config.celery_app import app
from scripts import servers
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

GET_SECONDS = 10.0
READY_SECONDS = 5.0


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Return a migrated PostgreSQL that only this module uses."""
    with servers.Postgres(tmp_path_factory.mktemp("frozen") / "postgres", throwaway=True) as postgres:
        environment = os.environ | {"DATABASE_URL": postgres.url, "DJANGO_SETTINGS_MODULE": "config.settings.local"}
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=CHECKOUT, env=environment, check=True)
        yield postgres


@contextmanager
def frozen(postgres):
    """Stop the server and every process of it, as a machine that is swapped out or a hung disk does."""
    main = psutil.Process(postgres.pid)
    processes = [main, *main.children(recursive=True)]

    def send(number):
        for process in processes:
            # A session may just have ended.
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


@contextmanager
def service_on(url, *names):
    with running() as service:
        service.environment["DATABASE_URL"] = url
        service.start(*names)
        yield service


def ask(service, path, *, headers=None):
    """Return the status, the type of the answer and how long it took."""
    begun = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        answer.read()
    return answer.status, answer.getheader("Content-Type").partition(";")[0], time.monotonic() - begun


def timed_out(service, path, seconds):
    status, kind, took = ask(service, path)
    print(f"{path} {status} {kind} {took:.2f} s")
    assert status == 503
    assert took < seconds
    return kind


def test_requests_end_with_503_while_the_database_is_frozen_and_work_after(database):
    with service_on(database.url, "web") as service:
        _, made = service.post({"seconds": 3600, "web_url": "http://a.example/"})
        timer = f"/timer/{made['task_id']}"
        assert ask(service, timer)[0] == 200
        with frozen(database):
            # A kept connection first, then new ones.
            assert timed_out(service, timer, GET_SECONDS) == "application/problem+json"
            assert timed_out(service, timer, GET_SECONDS) == "application/problem+json"
            timed_out(service, "/readyz", READY_SECONDS)
            assert service.post({"seconds": 1, "web_url": "http://a.example/"})[0] == 503
            assert ask(service, "/healthz")[0] == 200
        wait_until(lambda: ask(service, timer)[0] == 200)


def test_probe_that_meets_the_frozen_database_first_ends_in_time(database):
    with service_on(database.url, "web") as service:
        assert "database" in service.get("/readyz")[1]["checks"]
        with frozen(database):
            for _ in range(3):
                timed_out(service, "/readyz", READY_SECONDS)


def test_crowd_of_requests_does_not_queue_behind_waits_for_a_frozen_database(database):
    with service_on(database.url, "web") as service, ThreadPoolExecutor(24) as pool:
        _, made = service.post({"seconds": 3600, "web_url": "http://a.example/"})
        timer = f"/timer/{made['task_id']}"
        with frozen(database):
            for answer in [pool.submit(timed_out, service, timer, GET_SECONDS) for _ in range(24)]:
                answer.result()
            crowd = [pool.submit(timed_out, service, timer, GET_SECONDS) for _ in range(24)]
            # The crowd arrives, and is not answered: none is while the database is frozen.
            time.sleep(0.2)
            timed_out(service, "/readyz", READY_SECONDS)
            for answer in crowd:
                answer.result()


def test_peer_that_accepts_and_never_answers_is_given_up(database):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing"
        with service_on(url, "web") as service:
            timed_out(service, "/readyz", READY_SECONDS)
            timed_out(service, "/timer/01a208fa-e8fb-7670-94ef-a8fa0c17a138", GET_SECONDS)


def test_admin_answers_503_while_the_database_is_frozen(database):
    # Any session id: looking it up asks the database.
    headers = {"Cookie": "sessionid=0123456789abcdef0123456789abcdef"}
    with service_on(database.url, "web") as service:
        ask(service, "/admin/", headers=headers)
        with frozen(database):
            # A page, though no Accept asks for one.
            status, kind, took = ask(service, "/admin/", headers=headers)
            assert (status, kind) == (503, "text/html")
            assert took < GET_SECONDS
            ask(service, "/admin/", headers=headers)
        said = [line for line in service.log("web").splitlines() if "database" in line]
        print("\n".join(said))
        assert "Traceback" not in service.log("web")
        assert sum("database_away" in line for line in said) == 1


def test_worker_ends_though_the_database_is_frozen(database):
    with service_on(database.url, "worker") as service:
        wait_until_noted(database)
        with frozen(database):
            # The worker meets the frozen server, and does not end by itself.
            time.sleep(1)
            assert service.processes["worker"].poll() is None
            # Its ledger gives up on the server, and its drain has an end.
            assert service.stop("worker", seconds=45) == 0


def wait_until_noted(postgres):
    with session(postgres) as cursor:
        cursor.connection.autocommit = True
        wait_until(lambda: found(cursor, "SELECT 1 FROM scheduler_worker"))


def found(cursor, statement, *values):
    cursor.execute(statement, values)
    return cursor.fetchall()


@contextmanager
def session(postgres):
    connection = psycopg2.connect(postgres.url)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


@pytest.mark.parametrize("task", ["reconcile", "prune"])
def test_task_that_loses_the_database_says_so_in_one_line(database, task):
    table = {"reconcile": "django_celery_beat_periodictask", "prune": "scheduler_idempotencykey"}[task]
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    with service_on(database.url, "worker") as service, session(database) as locks, session(database) as kills:
        kills.connection.autocommit = True
        locks.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        app.send_task(f"webtask_scheduler.scheduler.tasks.{task}")
        wait_until(lambda: found(kills, waiting, f"%{table}%"))
        begin = len(service.log("worker"))
        assert found(kills, f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS one", f"%{table}%") == [(True,)]
        wait_until(lambda: "task_failed" in service.log("worker")[begin:])
        # No second line comes.
        time.sleep(1)
        (line,) = service.log("worker")[begin:].splitlines()
        assert f"task_failed task={task} error=" in line
        assert "terminating connection" in line
