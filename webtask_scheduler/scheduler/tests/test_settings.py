"""A bad setting ends each command with one line that names it."""

import os
import subprocess
import sys

import pytest

from webtask_scheduler.scheduler.tests.support.service import CHECKOUT

COMMANDS = {
    "manage": ["manage.py", "migrate", "--noinput"],
    "worker": ["-m", "celery", "-A", "config.celery_app", "worker", "--pool", "threads"],
    "beat": ["-m", "celery", "-A", "config.celery_app", "beat", "--pidfile="],
    "our web": ["-m", "scripts.processes", "web"],
    "our worker": ["-m", "scripts.processes", "worker"],
    "our flower": ["-m", "scripts.processes", "flower"],
}


def run(*words, **environment):
    nowhere = {"DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=CHECKOUT,
        env=os.environ | nowhere | {"DJANGO_SETTINGS_MODULE": "config.settings.local"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.processes
@pytest.mark.parametrize("name", COMMANDS)
def test_bad_setting_ends_a_command_with_one_line(name):
    done = run(*COMMANDS[name], WEBTASK_CALLERS="abc")
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.splitlines() == ["WEBTASK_CALLERS is 'abc': it must be a whole number from 1 to 1000."]
    assert done.stdout == ""


@pytest.mark.processes
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL"])
def test_missing_server_ends_a_command_with_one_line_that_says_what_to_do(name, missing):
    done = run(*COMMANDS[name], **{missing: ""})
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{missing} is not set: start ./scripts/run, which brings a ")
    assert done.returncode == os.EX_CONFIG
    assert done.stdout == ""


@pytest.mark.processes
@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/n", "postgres://u:secret@h:port/n"])
def test_database_that_cannot_be_one_is_named_without_its_password(url):
    done = run("manage.py", "check", DATABASE_URL=url)
    assert done.stderr == "DATABASE_URL is not of the form postgres://user:password@host:5432/name.\n"
    assert done.returncode == os.EX_CONFIG


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("WEBTASK_CALLERS", "0", "a whole number from 1 to 1000"),
        ("WEBTASK_CALLERS", "-4", "a whole number from 1 to 1000"),
        ("WEBTASK_CALLERS", "3.5", "a whole number from 1 to 1000"),
        ("WEBTASK_BACKLOG_PER_SECOND", "-1", "a number from 0 to 1000000"),
        ("WEBTASK_CALL_TIMEOUT_SECONDS", "nan", "a number from 0.1 to 3600"),
        ("WEBTASK_BODY_LIMIT_BYTES", "1e9", "a whole number from 0 to 4194304"),
        ("WEBTASK_RETENTION_DAYS", "-1", "a whole number from 0 to 36500"),
        ("WEBTASK_HORIZON_SECONDS", "", ""),
        ("WEBTASK_EGRESS_NAT64", "yes", "one of off, on"),
        ("WEBTASK_EGRESS_CA_BUNDLE", "/none.pem", "the path of a readable PEM file with certificates of authorities"),
        ("WEB_ACCESS_LOG", "yes", "one of off, on"),
        ("DATABASE_POOLER", "pgbouncer", "one of none, session, transaction"),
        ("LOG_LEVEL", "LOUD", "one of INFO, DEBUG, WARNING, ERROR, CRITICAL"),
    ],
)
def test_bad_setting_is_named_with_what_it_must_be(name, value, must):
    done = run("-c", "import django; django.setup()", **{name: value})
    assert done.stderr == (f"{name} is {value!r}: it must be {must}.\n" if must else "")
    assert done.returncode == (os.EX_CONFIG if must else 0)


@pytest.mark.processes
def test_sentinels_without_the_name_of_a_server_end_the_start():
    done = run("-c", "import django; django.setup()", REDIS_URL="sentinel://127.0.0.1:1/0")
    assert done.stderr == "REDIS_SENTINEL_MASTER is not set, and REDIS_URL leads to sentinels.\n"
    assert done.returncode == os.EX_CONFIG


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (
            "WEBTASK_EGRESS_ALLOW",
            "private 10.0.0.1/8",
            "'10.0.0.1/8' is no address or network, such as 10.1.0.0/16 or [fd00::/8] (did you mean 10.0.0.0/8?)",
        ),
        (
            "WEBTASK_EGRESS_DENY",
            "a.example:0",
            "'a.example:0' has bad ports: they are from 1 to 65535, the lower one first",
        ),
    ],
)
def test_bad_entry_of_the_egress_guard_ends_the_start_and_is_named(name, value, fault):
    done = run("manage.py", "check", **{name: value})
    assert (done.returncode, done.stderr) == (os.EX_CONFIG, f"{name}: {fault}.\n")


@pytest.mark.processes
@pytest.mark.parametrize("url", ["proxy:4750", "https://proxy:4750", "http://me:hunter2@proxy", "http://proxy:1/path"])
def test_proxy_that_cannot_be_one_is_named_without_its_password(url):
    done = run("manage.py", "check", WEBTASK_EGRESS_PROXY=url)
    must = "it must be http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"
    assert (done.returncode, done.stderr) == (os.EX_CONFIG, f"WEBTASK_EGRESS_PROXY is not valid: {must}.\n")


PRINT = """
from django.conf import settings
from webtask_scheduler.scheduler.outgoing.egress import RefusedError
hosts = "127.0.0.1 10.1.2.3 192.168.1.1 0.0.0.0 ::1 fd00::1 169.254.169.254 224.0.0.1 93.184.216.34 9.9.9.9".split()
for host in hosts:
    try:
        settings.WEBTASK_EGRESS.check_target(host, 8001)
        print(host)
    except RefusedError:
        pass
"""
SECRETS = {
    "DJANGO_SECRET_KEY": "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghij",
    "DJANGO_ALLOWED_HOSTS": "timers.example",
    "DATABASE_URL": "postgres://timers:a-long-password@127.0.0.1:1/none",
    "REDIS_URL": "redis://:a-long-password@127.0.0.1:1/0",
}
PUBLIC, NEAR = ["93.184.216.34", "9.9.9.9"], ["127.0.0.1", "10.1.2.3", "192.168.1.1", "0.0.0.0", "::1", "fd00::1"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("mode", "environment", "called"),
    [
        ("local", {}, [*NEAR, *PUBLIC]),
        ("local", {"WEBTASK_EGRESS_ALLOW": "10.0.0.0/8"}, ["10.1.2.3", *PUBLIC]),
        ("local", {"WEBTASK_EGRESS_DENY": "private, 9.9.9.9"}, ["127.0.0.1", "0.0.0.0", "::1", PUBLIC[0]]),
        ("production", {}, PUBLIC),
        ("production", {"WEBTASK_EGRESS_ALLOW": "10.1.2.3:8000-8010"}, ["10.1.2.3", *PUBLIC]),
    ],
)
def test_local_settings_call_what_is_near_and_production_does_not(mode, environment, called):
    settings = {"DJANGO_SETTINGS_MODULE": f"config.settings.{mode}"}
    done = run("-c", f"import django; django.setup(){PRINT}", **SECRETS, **settings, **environment)
    assert (done.stdout.split(), done.stderr) == (called, "")
