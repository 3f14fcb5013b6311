"""Timers are called behind a pooler and through sentinels, as docs/deployment.md promises."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis

from scripts import servers
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

POOLER = shutil.which("pgbouncer")
# Fewer than our processes hold, so that clients do share sessions.
FEW = 5
MASTER = "timers"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Return a migrated PostgreSQL that only this module uses."""
    with servers.Postgres(tmp_path_factory.mktemp("modes") / "postgres", throwaway=True) as postgres:
        environment = os.environ | {"DATABASE_URL": postgres.url, "DJANGO_SETTINGS_MODULE": "config.settings.local"}
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=CHECKOUT, env=environment, check=True)
        yield postgres


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def process(*words, **options):
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def pooler(postgres, mode, directory):
    """Run PgBouncer as it comes, before a PostgreSQL, and yield the URL by which clients use it."""
    port, parts = free_port(), urlsplit(postgres.url)
    directory.chmod(0o755)
    (directory / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
    (directory / "pgbouncer.ini").write_text(
        f"""[databases]
* = host=127.0.0.1 port={parts.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users.txt
pool_mode = {mode}
default_pool_size = {FEW if mode == "transaction" else 50}
"""
    )
    # It does not run as root.
    user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    for above in directory.parents:
        if above.stat().st_uid == os.getuid() and tempfile.gettempdir() in map(str, above.parents):
            above.chmod(above.stat().st_mode | 0o011)
    with process(POOLER, str(directory / "pgbouncer.ini"), **user):
        wait_until(lambda: listens(port))
        yield postgres.url.replace(f":{parts.port}/", f":{port}/")


@contextmanager
def service(*names, **environment):
    with running() as found:
        found.environment |= environment
        found.start(*names)
        yield found


def fire(service, receiver, path, *, seconds=1):
    """Have a timer called, and return how late its attempt was."""
    status, body = service.post({"seconds": seconds, "web_url": receiver.url(f"/{path}")})
    assert status == 201, body
    wait_until(lambda: service.get(f"/timer/{body['task_id']}")[1]["status"] == "succeeded")
    (attempt,) = service.get(f"/timer/{body['task_id']}")[1]["attempts"]
    return attempt["lateness_ms"]


@pytest.mark.skipif(POOLER is None, reason="There is no pgbouncer here.")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_timers_are_called_and_upkeep_runs_behind_a_pooler(mode, database, receiver, tmp_path):
    with pooler(database, mode, tmp_path) as url, ExitStack() as stack:
        found = stack.enter_context(service("web", "worker", "beat", DATABASE_URL=url, DATABASE_POOLER=mode))
        lateness = [fire(found, receiver, f"{mode}/{number}") for number in range(5)]
        assert max(lateness) < 1000
        assert found.get("/readyz")[0] == 200
        lacks = "SET idle_in_transaction_session_timeout = '5s'; "
        for name in ("web", "worker", "beat"):
            assert (lacks in found.log(name)) == (mode == "transaction"), name
        # Upkeep holds a lock while it works. One that were not released would keep the next from its work.
        for _ in range(6):
            status, begun = found.post({"action": "cancel", "filter": {"host": "a.example"}}, path="/timer/bulk")
            assert status == 202, begun
            wait_until(lambda begun=begun: is_done(found, begun))
        with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
            # The operation is done a moment before its lock is given back; the sweep may hold one for a moment too.
            connection.autocommit = True

            def is_free():
                cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
                return cursor.fetchone()[0] == 0

            wait_until(is_free)


@pytest.mark.skipif(POOLER is None, reason="There is no pgbouncer here.")
@pytest.mark.parametrize(("mode", "own"), [("session", ("6s", "5s")), ("transaction", ("0", "0"))])
def test_session_has_its_parameters_where_it_is_not_shared(mode, own, database, tmp_path):
    shown = (
        "from config.wsgi import application; from django.db import connection as c; k = c.cursor(); k.execute('SELECT "
    )
    shown += "current_setting(''statement_timeout''), current_setting(''idle_in_transaction_session_timeout'')');"
    shown = shown.replace("''", '"').replace('"', "$$") + " print(*k.fetchone())"
    with pooler(database, mode, tmp_path) as url:
        environment = os.environ | {"DATABASE_URL": url, "DATABASE_POOLER": mode, "WEBTASK_PUBLISHED_ON": "127.0.0.1"}
        words = [sys.executable, "-c", shown]
        done = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == own


def is_done(service, begun):
    return service.get(f"/timer/bulk/{begun['bulk_id']}")[1]["status"] == "done"


def redis_words(directory, port, *lines):
    """Return the command line of a Redis with a password."""
    file = directory / f"{port}.conf"
    file.write_text("\n".join([f"port {port}", "bind 127.0.0.1", 'save ""', f"dir {directory}", *lines, ""]))
    return [str(servers.Redis._program()), str(file)]


@contextmanager
def replicated_redis(directory):
    """Run a Redis, a replica of it, and two sentinels that agree on a failure; yield them and REDIS_URL."""
    first, second, *watchers = (free_port() for _ in range(4))
    both = ("requirepass secret", "masterauth secret")
    watch = (
        f"sentinel monitor {MASTER} 127.0.0.1 {first} 2",
        f"sentinel auth-pass {MASTER} secret",
        f"sentinel down-after-milliseconds {MASTER} 1000",
        f"sentinel failover-timeout {MASTER} 5000",
        "requirepass watched",
    )
    with ExitStack() as stack:
        main = stack.enter_context(process(*redis_words(directory, first, *both)))
        stack.enter_context(process(*redis_words(directory, second, *both, f"replicaof 127.0.0.1 {first}")))
        replica = redis.Redis(port=second, password="secret")
        wait_until(lambda: listens(first) and listens(second) and replica.info()["master_link_status"] == "up")
        for port in watchers:
            stack.enter_context(process(*redis_words(directory, port, *watch), "--sentinel"))
        asked = [redis.Redis(port=port, password="watched") for port in watchers]
        wait_until(lambda: all(listens(port) for port in watchers))
        wait_until(lambda: all(each.sentinel_master(MASTER)["num-other-sentinels"] == 1 for each in asked))
        wait_until(lambda: all(each.sentinel_master(MASTER)["num-slaves"] == 1 for each in asked))
        yield main, replica, ";".join(f"sentinel://:secret@127.0.0.1:{port}/3" for port in watchers)
        for each in (replica, *asked):
            each.close()


def test_timers_are_called_when_a_replica_takes_over_from_a_redis(database, receiver, tmp_path):
    with replicated_redis(tmp_path) as (main, replica, url), ExitStack() as stack:
        environment = {"REDIS_SENTINEL_MASTER": MASTER, "REDIS_SENTINEL_PASSWORD": "watched"}
        names = ("web", "worker", "beat")
        found = stack.enter_context(service(*names, DATABASE_URL=database.url, REDIS_URL=url, **environment))
        wait_until(lambda: found.get("/readyz")[0] == 200)
        assert fire(found, receiver, "before") < 1000
        main.kill()
        wait_until(lambda: found.get("/readyz")[1]["checks"]["broker"] != "ok")
        # Made while no server takes messages.
        fire(found, receiver, "meanwhile", seconds=0)
        assert replica.info()["role"] == "master"
        wait_until(lambda: found.get("/readyz")[0] == 200)
        assert fire(found, receiver, "after") < 1000
