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
        ("WEBTASK_LIMIT_TIMERS_WAITING", "-1", "a whole number from 0 to 1000000000"),
        ("WEBTASK_LIMIT_GAP_SECONDS", "61", "a number from 0 to 60"),
        ("WEBTASK_LIMIT_ANSWER_BYTES", "1000", "a whole number from 65536 to 1073741824"),
        ("WEBTASK_HOST_MAX_PER_SECOND", "many", "a number from 0 to 1000000"),
        ("WEBTASK_PROXIES", "11", "a whole number from 0 to 10"),
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
