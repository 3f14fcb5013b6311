"""A bad setting ends each command with one line that names it."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from django.test import Client

from config.listening import granian_host, is_loopback, own_addresses, runserver_host
from webtask_scheduler.scheduler.tests.support.cases import each
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
        ("WEBTASK_LIMIT_TIMERS_WAITING", "-1", "a whole number from 0 to 1000000000"),
        ("WEBTASK_LIMIT_GAP_SECONDS", "61", "a number from 0 to 60"),
        ("WEBTASK_LIMIT_ANSWER_BYTES", "1000", "a whole number from 65536 to 1073741824"),
        ("WEBTASK_HOST_MAX_PER_SECOND", "many", "a number from 0 to 1000000"),
        ("WEBTASK_STATUS", "yes", "one of off, public"),
        (
            "WEBTASK_SLO_SECONDS",
            "0.3",
            "one of 0.1, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300, 3600",
        ),
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
    "WEBTASK_ENCRYPTION_KEYS": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
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


# Who reaches an open API


@each("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "A.LOCALHOST", " 127.0.0.1 "])
def test_loopback_is_this_machine(host):
    assert is_loopback(host)


@each("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "0", "--uds"])
def test_everything_else_is_not(host):
    assert not is_loopback(host)


@each(
    ("words", "host"),
    [
        ([], "127.0.0.1"),
        (["--host", "0.0.0.0", "--port", "1"], "0.0.0.0"),
        (["--port", "1", "--host=::"], "::"),
        (["--host", "127.0.0.1", "--host", "10.0.0.1"], "10.0.0.1"),
        (["--host", "127.0.0.1", "--uds", "/tmp/x"], "--uds"),
        (["--host"], ""),
    ],
)
def test_where_granian_listens_is_read_as_it_reads_it(words, host):
    assert granian_host([*words], {}) == host
    assert granian_host([], {"GRANIAN_HOST": "::"}) == "::"


@each(
    ("words", "host"),
    [([], "127.0.0.1"), (["8001"], "127.0.0.1"), (["--noreload", "0.0.0.0:8001"], "0.0.0.0"), (["[::1]:1"], "[::1]")],
)
def test_where_runserver_listens_is_read_as_it_reads_it(words, host):
    assert runserver_host(words) == host


OPEN = "WEBTASK_API_AUTH is 'open', and the web server listens "


@pytest.mark.processes
@pytest.mark.parametrize("name", COMMANDS)
def test_open_api_that_others_reach_is_not_started(name):
    done = run(*COMMANDS[name], HOST="0.0.0.0")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{OPEN}on 0.0.0.0: whoever reaches it")
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "environment", "where"),
    [
        (["-m", "config.web", "--interface", "wsgi", "--host", "0.0.0.0", "config.wsgi:application"], {}, "on 0.0.0.0"),
        (["-m", "config.web", "--interface", "wsgi", "config.wsgi:application"], {"GRANIAN_HOST": "::"}, "on ::"),
        (["manage.py", "runserver", "--noreload", "0.0.0.0:0"], {}, "on 0.0.0.0"),
        (["-c", "import config.wsgi"], {}, "where nobody says"),
        (["-c", "import config.wsgi"], {"WEBTASK_PUBLISHED_ON": "10.1.2.3"}, "on 10.1.2.3"),
        (["-c", "import django; django.setup()"], {"HOST": "127.0.0.1", "WEBTASK_PUBLISHED_ON": "::"}, "on ::"),
    ],
    ids=["granian", "its variable", "runserver", "another server", "published", "published by setting"],
)
def test_however_it_is_served_an_open_api_is_not_for_others(words, environment, where):
    done = run(*words, **environment)
    assert f"{OPEN}{where}: whoever reaches it" in done.stderr
    assert done.returncode == os.EX_CONFIG


@pytest.mark.processes
@pytest.mark.parametrize(
    "environment",
    [
        {"HOST": "0.0.0.0", "WEBTASK_API_AUTH": "key"},
        {"HOST": "0.0.0.0", "WEBTASK_PUBLISHED_ON": "127.0.0.1"},
        {"HOST": "0.0.0.0", "WEBTASK_OPEN_ON_PUBLIC": "yes-i-mean-it"},
        {"HOST": "::1"},
        {"HOST": "localhost", "WEBTASK_API_AUTH": "open"},
    ],
)
def test_api_with_keys_on_loopback_or_meant_to_be_public_is_started(environment):
    done = run("-c", "import django; django.setup()", **environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        ("WEBTASK_API_AUTH", "none", "one of open, key"),
        ("WEBTASK_OPEN_ON_PUBLIC", "yes", "one of no, yes-i-mean-it"),
    ],
)
def test_who_may_call_is_one_of_two_words(name, value, must):
    done = run("-c", "import django; django.setup()", **{name: value})
    assert done.stderr == f"{name} is {value!r}: it must be {must}.\n"


@pytest.mark.django_db
@each("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "0.0.0.0:8000", "a.localhost", "django"])
def test_this_machine_is_called_by_its_own_names(host):
    assert Client().get("/timer", headers={"host": host}).status_code == 200


@pytest.mark.django_db
@each("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "8.8.8.8"])
def test_name_that_leads_here_from_elsewhere_is_refused(host):
    for path in ("/timer", "/api/docs", "/admin/"):
        assert Client().get(path, headers={"host": host}).status_code == 400


@pytest.mark.django_db
def test_this_machine_s_own_names_and_addresses_are_known():
    for host in (socket.gethostname(), *own_addresses()):
        assert Client().get("/timer", headers={"host": host}).status_code == 200


# Which settings, where nobody says

FORGOTTEN = (
    "DJANGO_SETTINGS_MODULE is not set: give config.settings.production on a server; on your own machine start"
    " ./scripts/run once, or give config.settings.local.\n"
)


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what a server needs of the checkout, in which `./scripts/run` was never started."""
    for name in ("config", "webtask_scheduler", "scripts", "manage.py"):
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / name)
    return tmp_path


@pytest.mark.processes
def test_forgotten_settings_are_asked_for_unless_the_service_was_run_here(checkout):
    bare = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}

    def start(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=checkout, env=bare, capture_output=True, text=True, timeout=60, check=False
        )

    commands = [*COMMANDS.values(), ["-c", "import config.wsgi"]]
    for words in commands:
        done = start(*words)
        assert (done.returncode, done.stderr, done.stdout) == (os.EX_CONFIG, FORGOTTEN, ""), words
    (checkout / ".data").mkdir()
    (checkout / ".data" / "env").write_text(
        "DATABASE_URL=postgres://nobody@127.0.0.1:1/none\nREDIS_URL=redis://127.0.0.1:1\n"
    )
    done = start("manage.py", "shell", "-c", "from django.conf import settings; print(settings.WEBTASK_API_AUTH)")
    assert "open" in done.stdout.split(), done.stderr


# The web server itself


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_revocation_takes_effect_at_the_next_request_of_a_running_server(web, django_user_model):
    from webtask_scheduler.access import keys
    from webtask_scheduler.access.models import ApiKey

    owner = django_user_model.objects.create_user("ann@example.com")
    made = keys.make(name="shop", owner_id=owner.pk, scopes=["timers:read"])

    def ask():
        request = urllib.request.Request(
            f"http://127.0.0.1:{web.port}/timer", headers={"Authorization": f"Bearer {made.text}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert [ask() for _ in range(5)] == [200] * 5
    keys.revoke(ApiKey.objects.all())
    assert ask() == 401
