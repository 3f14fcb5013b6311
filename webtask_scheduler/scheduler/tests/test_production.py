"""The settings of a server: what they refuse, and how they answer plain HTTP and unknown names."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from webtask_scheduler.scheduler.tests.support.cases import each
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT

KEY = "0123456789abcdef" * 4
GOOD = {
    "DJANGO_SETTINGS_MODULE": "config.settings.production",
    "DJANGO_SECRET_KEY": KEY,
    "DJANGO_ALLOWED_HOSTS": "timers.example.com",
    "DATABASE_URL": "postgres://timers:a-long-password@127.0.0.1:1/none",
    "REDIS_URL": "redis://:a-long-password@127.0.0.1:1/0",
    "WEBTASK_ENCRYPTION_KEYS": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
}

pytestmark = pytest.mark.processes


def run(*words, **changed):
    """Run a Python with good settings, but for those that are given; None takes one away."""
    environment = {name: value for name, value in (os.environ | GOOD | changed).items() if value is not None}
    return subprocess.run(
        [sys.executable, *words], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@each(
    ("changed", "said"),
    [
        ({"DJANGO_SECRET_KEY": None}, "DJANGO_SECRET_KEY is not set: give DJANGO_SECRET_KEY, or "),
        ({"DJANGO_SECRET_KEY": "x" * 49}, "DJANGO_SECRET_KEY has 49 characters: it must have 50 or more."),
        ({"DJANGO_SECRET_KEY": "abcd" * 16}, "DJANGO_SECRET_KEY has 4 different characters: it must be random."),
        (
            {"DJANGO_SECRET_KEY": "local-development-only-not-a-secret-0123456789abcdef"},
            "DJANGO_SECRET_KEY is a default that everybody knows",
        ),
        ({"DJANGO_SECRET_KEY": "change-me-key" * 5}, "DJANGO_SECRET_KEY is a default that everybody knows"),
        (
            {"DJANGO_SECRET_KEY": None, "DJANGO_SECRET_KEY_FILE": "/nowhere/key"},
            "DJANGO_SECRET_KEY_FILE names /nowhere/key, which cannot be read: FileNotFoundError.",
        ),
        ({"DJANGO_ALLOWED_HOSTS": " , "}, "DJANGO_ALLOWED_HOSTS is not set"),
        ({"DJANGO_ALLOWED_HOSTS": "a.example.com,*"}, "DJANGO_ALLOWED_HOSTS is *"),
        ({"DATABASE_URL": None}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "postgres://timers@db/timers"}, "DATABASE_URL has no password"),
        ({"DATABASE_URL": "postgres://timers:short@db/timers"}, "DATABASE_URL has a password of 5 characters"),
        ({"DATABASE_URL": "postgres://timers:local-only@db/timers"}, "DATABASE_URL is a default that everybody knows"),
        ({"DATABASE_URL": "postgres://timers:with[bracket-in-it@db/timers"}, "DATABASE_URL is no URL"),
        ({"REDIS_URL": ""}, "REDIS_URL is not set"),
        ({"REDIS_URL": "redis://redis:6379/0"}, "REDIS_URL has no password"),
        ({"WEBTASK_ENCRYPTION_KEYS": None}, "WEBTASK_ENCRYPTION_KEYS is not set: give WEBTASK_ENCRYPTION_KEYS, or "),
        (
            {"WEBTASK_ENCRYPTION_KEYS": GOOD["WEBTASK_ENCRYPTION_KEYS"] + ",short"},
            "WEBTASK_ENCRYPTION_KEYS: key 2 is not 32 bytes in URL-safe base64; head -c 32 /dev/urandom",
        ),
        (
            {"WEBTASK_ENCRYPTION_KEYS": "local-development-only-not-a-secret-0123456="},
            "WEBTASK_ENCRYPTION_KEYS is a default that everybody knows",
        ),
        ({"DJANGO_SECURE_HSTS_SECONDS": "-1"}, "DJANGO_SECURE_HSTS_SECONDS is '-1'"),
        (
            {"WEBTASK_FLOWER_URL": "javascript:alert(1)"},
            "WEBTASK_FLOWER_URL is 'javascript:alert(1)': it must be a URL",
        ),
        ({"FLOWER": "yes"}, "FLOWER is 'yes': it must be one of off, on"),
    ],
)
def test_missing_default_or_short_setting_stops_the_start_with_one_line(changed, said):
    done = run("-c", "import django; django.setup()", **changed)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_refusal_shows_no_secret():
    done = run("-c", "import django; django.setup()", DATABASE_URL="postgres://timers:hunter2@db/timers")
    assert "hunter2" not in done.stderr


def test_each_secret_may_be_in_a_file(tmp_path):
    changed = {}
    for name in ("DJANGO_SECRET_KEY", "DATABASE_URL", "REDIS_URL", "WEBTASK_ENCRYPTION_KEYS"):
        (tmp_path / name).write_text(GOOD[name] + "\n")
        changed |= {name: None, f"{name}_FILE": str(tmp_path / name)}
    program = """
import django, json
django.setup()
from django.conf import settings
database = settings.DATABASES["default"]
print(json.dumps([settings.SECRET_KEY, database["PASSWORD"], settings.CELERY_BROKER_URL]))
print(json.dumps(settings.WEBTASK_ENCRYPTION_KEYS))
"""
    done = run("-c", program, **changed)
    shown, keys = map(json.loads, done.stdout.splitlines())
    assert shown == [KEY, "a-long-password", GOOD["REDIS_URL"]]
    assert keys == [GOOD["WEBTASK_ENCRYPTION_KEYS"]]


def test_celery_and_manage_say_the_same_line():
    for words in (["manage.py", "check"], ["-m", "celery", "-A", "config.celery_app", "beat", "--pidfile="]):
        done = run(*words, DJANGO_SECRET_KEY="short")
        assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
        assert done.stderr == "DJANGO_SECRET_KEY has 5 characters: it must have 50 or more.\n"


def test_checks_for_a_server_find_nothing():
    done = run("manage.py", "check", "--deploy", "--fail-level", "WARNING")
    assert done.returncode == 0
    assert done.stdout == "System check identified no issues (1 silenced).\n"
    assert done.stderr == ""


ASK = """
import json, sys
import django
django.setup()
from django.test import Client
method, path, headers = json.loads(sys.argv[1])
answer = Client(raise_request_exception=False).generic(method, path, "{}", "application/json", headers=headers)
print(json.dumps([answer.status_code, dict(answer.items()), answer.content.decode()]))
"""


def ask(method, path, **headers):
    """Return the status, the headers and the body that a server answers. It has no database and no broker."""
    headers = {"Host": "timers.example.com"} | {name.replace("_", "-"): value for name, value in headers.items()}
    done = run("-c", ASK, json.dumps([method, path, headers]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@each("method", ["POST", "PATCH", "DELETE"])
def test_plain_http_that_may_change_something_is_refused_and_not_redirected(method):
    status, headers, body = ask(method, "/timer")
    assert status == 403
    assert headers["Content-Type"] == "application/problem+json"
    assert "Location" not in headers
    problem = json.loads(body)
    assert problem["status"] == 403
    assert f"takes {method} over HTTPS only" in problem["detail"]


def test_plain_http_that_reads_is_redirected():
    status, headers, _ = ask("GET", "/timer?status=failed")
    assert (status, headers["Location"]) == (301, "https://timers.example.com/timer?status=failed")


def test_https_as_the_proxy_says_reaches_the_api_and_is_remembered_by_browsers():
    status, headers, body = ask("POST", "/timer", X_Forwarded_Proto="https")
    assert status == 401
    assert headers["WWW-Authenticate"] == 'Bearer realm="webtask_scheduler"'
    assert "An API key is needed" in body
    assert headers["Strict-Transport-Security"] == "max-age=3600; includeSubDomains"
    assert headers["Referrer-Policy"] == "same-origin"


@each(("path", "status"), [("/healthz", 200), ("/readyz", 503)])
def test_probe_is_answered_under_any_name_and_by_plain_http(path, status):
    for host in ("localhost:8000", "10.2.3.4", "not.known.example"):
        assert ask("GET", path, Host=host)[0] == status


def test_unknown_name_is_refused_elsewhere():
    assert ask("GET", "/timer", Host="not.known.example", X_Forwarded_Proto="https")[0] == 400


STRANGERS = """
import json, shutil, sys, tempfile
import django
from django.conf import settings
settings.STATIC_ROOT = tempfile.mkdtemp()
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("collectstatic", interactive=False, verbosity=0)
client = Client(raise_request_exception=False)
answers = {}
for path in json.loads(sys.argv[1]):
    headers = {"Host": "timers.example.com", "X-Forwarded-Proto": "https", "Accept": "text/html"}
    answer = client.get(path, headers=headers)
    content = b"".join(answer) if answer.streaming else answer.content
    answers[path] = [answer.status_code, dict(answer.items()), content.decode(errors="replace")]
shutil.rmtree(settings.STATIC_ROOT)
print(json.dumps(answers))
"""
# What somebody without an account may see: the description of the API and a log-in.
OPEN = {"/": 302, "/login": 200, "/api/docs": 200, "/admin/login/": 200, "/healthz": 200}
CLOSED = {
    **dict.fromkeys(["/metrics", "/metrics?token=x"], (401, 403)),
    **dict.fromkeys(
        [
            "/admin/",
            "/admin/scheduler/timer/",
            "/admin/users/user/",
            "/admin/jsi18n/",
            "/admin/otp_totp/totpdevice/",
            "/admin/no-such-page/",
            "/timers",
            "/timers/new",
            "/timers/01a208fa-e8fb-7670-94ef-a8fa0c17a138",
        ],
        (302,),
    ),
    **dict.fromkeys(
        [
            "/demo/receiver",
            "/flower/",
            "/flower/api/workers",
            "/static/",
            "/static/admin/",
            "/static/../config/settings/base.py",
            "/static/%2e%2e/config/settings/base.py",
            "/static/..%2fmanage.py",
            "/.env",
            "/.envs/.production/.django",
            "/.git/config",
            "/server-status",
            "/debug/",
            "/media/",
            "/accounts/login/",
            "/password_reset/",
        ],
        (404,),
    ),
}


def walk(paths, **settings):
    done = run("-c", STRANGERS, json.dumps(list(paths)), **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_stranger_sees_the_doors_and_nothing_behind_them():
    answers = walk([*OPEN, *CLOSED])
    found = {path: status for path, (status, _, _) in answers.items()}
    assert {path: found[path] for path in OPEN} == OPEN
    assert {path: found[path] for path, good in CLOSED.items() if found[path] not in good} == {}
    for path, (_, headers, text) in answers.items():
        assert "Traceback" not in text, path
        assert "a-long-password" not in text, path
        assert KEY not in text, path
        assert headers.get("X-Content-Type-Options") == "nosniff" or path == "/healthz"
        if path.startswith("/admin"):
            assert headers.get("Location", "/admin/login/").startswith("/admin/login/")


def test_admin_has_the_path_that_is_chosen_and_strangers_are_not_told():
    answers = walk(
        ["/admin/", "/admin/login/", "/office/timers/", "/office/timers/login/", "/nonsense", "/api/docs", "/login"],
        DJANGO_ADMIN_PATH="/office/timers",
    )
    statuses = {path: status for path, (status, _, _) in answers.items()}
    assert statuses["/admin/"] == statuses["/admin/login/"] == 404
    assert statuses["/office/timers/"] == 302
    assert answers["/office/timers/"][1]["Location"].startswith("/office/timers/login/")
    assert statuses["/office/timers/login/"] == 200
    for path in ("/nonsense", "/admin/", "/api/docs", "/login"):
        assert "office" not in answers[path][2]


@each("path", ["api", "timer/x", "static", "../x", "a b", "a/../b", "a//b", "ä", "flower", "timers", "login"])
def test_path_of_the_admin_that_cannot_be_is_refused(path):
    done = run("-c", "import django; django.setup()", DJANGO_ADMIN_PATH=path)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("DJANGO_ADMIN_PATH is ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.dump", "b.dump"], "production: give one dump, not a.dump and b.dump.\n"),
        (["a.dump", "--held"], "production: restore knows --hold and --yes, not --held.\n"),
        (["nowhere.dump"], "production: give a dump: "),
    ],
)
def test_restore_that_is_not_understood_begins_nothing(tmp_path, words, said):
    (tmp_path / ".envs/.production").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(CHECKOUT / "scripts/production", tmp_path / "scripts")
    done = subprocess.run(
        ["bash", script, "restore", *words], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith(said)
    assert done.returncode == 1


@each(
    ("module", "limits"),
    [
        ("config.settings.production", [100.0, 100_000, 50.0, 1.0, 10, 1]),
        ("config.settings.local", [0, 0, 0, 0, 10, 0]),
    ],
)
def test_limits_are_on_for_a_server_and_off_for_a_laptop(module, limits):
    program = """
import django, json
django.setup()
from django.conf import settings
names = "REQUESTS_PER_SECOND TIMERS_WAITING RECURRING_PER_SECOND GAP_SECONDS BULK_OPEN".split()
print(json.dumps([getattr(settings, f"WEBTASK_LIMIT_{name}") for name in names] + [settings.WEBTASK_PROXIES]))
"""
    assert json.loads(run("-c", program, DJANGO_SETTINGS_MODULE=module).stdout) == limits


def test_pages_on_a_server_link_flower_where_it_is(tmp_path):
    """The composition is rendered; what it tells web is read by the settings."""
    if not shutil.which("docker"):
        pytest.skip("There is no docker here to render the composition.")
    shutil.copy(CHECKOUT / "docker-compose.production.yml", tmp_path)
    shutil.copytree(CHECKOUT / ".envs" / ".production.example", tmp_path / ".envs" / ".production")
    names = tmp_path / ".envs" / ".production" / ".compose"
    said = names.read_text()
    words = ["docker", "compose", "--file", "docker-compose.production.yml", "--env-file", str(names)]
    for line, profile, link in (("", [], ""), ("FLOWER=off", [], ""), ("FLOWER=on", ["--profile=flower"], "/flower/")):
        names.write_text(f"{said}\n{line}\n")
        done = subprocess.run(
            [*words, *profile, "config", "--format", "json"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        services = json.loads(done.stdout)["services"]
        assert ("flower" in services) == bool(link)
        assert services["caddy"]["environment"]["FLOWER"] == services["web"]["environment"]["FLOWER"]
        # Nobody else shows pages.
        assert [name for name, one in services.items() if "FLOWER" in (one.get("environment") or {})] == [
            *("caddy", "web")
        ]
        flower = {"FLOWER": services["web"]["environment"]["FLOWER"]}
        asked = "from django.conf import settings; print(settings.WEBTASK_FLOWER_URL)"
        assert run("-c", asked, **flower).stdout.strip() == link, line
        own = run("-c", asked, **flower, WEBTASK_FLOWER_URL="https://flower.example.com")
        assert own.stdout.strip() == "https://flower.example.com"
