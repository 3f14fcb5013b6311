"""The settings shared by every way of running the service. Only the settings read the environment."""

import base64
import math
import os
import re
import ssl
import sys
from logging import LogRecord
from pathlib import Path
from typing import Any, NoReturn

import environ
from django.utils.module_loading import import_string
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.listening import MEANT, refuse_open
from webtask_scheduler import __version__

# A missing or bad setting ends the process with one line, because a traceback would not help.


def required(name: str, what: str) -> str:
    """Return a variable of the environment. Exits with a sentence if it is not set; `what` says how it gets a value."""
    found = os.environ.get(name, "").strip()
    if not found:
        print(f"{name} is not set: {what}.", file=sys.stderr, flush=True)
        sys.exit(os.EX_CONFIG)
    return found


def _refuse(name: str, must: str) -> NoReturn:
    print(f"{name} is {os.environ[name]!r}: it must be {must}.", file=sys.stderr, flush=True)
    sys.exit(os.EX_CONFIG)


# Numbers and words that differ from their defaults, as they are written, for the page of the system. Secrets, addresses
# and paths are read in other ways and are never here. The last who reads a name decides: production has other defaults.
CHANGED_SETTINGS: dict[str, str] = {}


def _noted(name: str, found: Any, default: Any) -> Any:
    """Return what was read, and note it if it is not the default."""
    CHANGED_SETTINGS.pop(name, None)
    if found != default:
        CHANGED_SETTINGS[name] = f"{found:g}" if isinstance(found, float) else str(found)
    return found


def whole_number(name: str, *, default: int, least: int, most: int) -> int:
    """Return a whole number from the environment. Exits with a sentence if it is invalid or out of bounds."""
    text = os.environ.get(name, "").strip() or str(default)
    try:
        found = int(text)
    except ValueError:
        found = least - 1
    if not least <= found <= most:
        _refuse(name, f"a whole number from {least} to {most}")
    return int(_noted(name, found, default))


def number(name: str, *, default: float, least: float, most: float) -> float:
    """Return a number from the environment. Exits with a sentence if it is invalid or out of bounds."""
    text = os.environ.get(name, "").strip() or str(default)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not least <= found <= most:
        _refuse(name, f"a number from {least} to {most}")
    return float(_noted(name, found, default))


def one_of(name: str, *choices: str) -> str:
    """Return one of several words from the environment, the first by default. Exits with a sentence for another."""
    found = os.environ.get(name, "").strip() or choices[0]
    if found not in choices:
        _refuse(name, f"one of {', '.join(choices)}")
    return str(_noted(name, found, choices[0]))


_RULES = "webtask_scheduler.scheduler.rules"
_EGRESS, _PROXY = ("webtask_scheduler.scheduler.outgoing." + name for name in ("egress", "proxy"))


def _entries(name: str, default: str = "") -> str:
    """Return a setting of the egress guard as it is written. Exits with a sentence for an entry that is not valid."""
    text = os.environ.get(name, "").strip() or default
    try:
        import_string(f"{_EGRESS}.read_entries")(text)
    except ValueError as error:
        print(f"{name}: {error}.", file=sys.stderr, flush=True)
        sys.exit(os.EX_CONFIG)
    return text


def egress(*, allow: str) -> Any:
    """Return the guard of outgoing calls. It allows `allow` where the environment does not say what else it does."""
    return import_string(f"{_EGRESS}.Egress")(
        allow=_entries("WEBTASK_EGRESS_ALLOW", allow),
        deny=_entries("WEBTASK_EGRESS_DENY"),
        nat64=one_of("WEBTASK_EGRESS_NAT64", "off", "on") == "on",
    )


def proxy(name: str) -> str:
    """Return the URL of a proxy, empty for none. Exits with a sentence, which does not show its password."""
    url = os.environ.get(name, "").strip()
    try:
        if url:
            import_string(f"{_PROXY}.read_proxy")(url)
    except ValueError as error:
        print(f"{name} is not valid: {error}.", file=sys.stderr, flush=True)
        sys.exit(os.EX_CONFIG)
    return url


def certificates(name: str) -> str:
    """Return the path of a file of certificates, empty for none. Exits with a sentence if it holds none."""
    path = os.environ.get(name, "").strip()
    if path:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except (OSError, ValueError):
            _refuse(name, "the path of a readable PEM file with certificates of authorities")
    return path


def encryption_keys(*, default: str = "") -> list[str]:
    """Return the keys of WEBTASK_ENCRYPTION_KEYS, the newest first. Exits with a sentence that shows no key."""
    name = "WEBTASK_ENCRYPTION_KEYS"
    keys = [key.strip() for key in (os.environ.get(name, "").strip() or default).split(",")]
    for place, key in enumerate(keys, start=1):
        try:
            is_key = len(base64.urlsafe_b64decode(key)) == 32  # noqa: PLR2004 - as Fernet has it
        except ValueError:
            is_key = False
        if not is_key:
            print(
                f"{name}: key {place} is not 32 bytes in URL-safe base64;"
                " head -c 32 /dev/urandom | base64 | tr '+/' '-_' makes one.",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(os.EX_CONFIG)
    return keys


def public_url(name: str) -> str:
    """Return the URL under which people reach the pages, without a slash at its end; empty if it is not set."""
    url = os.environ.get(name, "").strip().rstrip("/")
    if url and not re.fullmatch(r"https?://[A-Za-z0-9._~:\[\]-]+(/[A-Za-z0-9._~/-]*)?", url):
        _refuse(name, "the URL of this service, such as https://timers.example.com, without a query")
    return url


_MAIL = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465, "consolemail": None, "filemail": None, "dummymail": None}


def mail(default: str) -> dict[str, Any]:
    """Return Django's settings of mail from EMAIL_URL. Exits with a sentence, which does not show its password."""
    url = os.environ.get("EMAIL_URL", "").strip() or default
    try:
        found: dict[str, Any] = environ.Env.email_url_config(url)
        scheme = url.partition(":")[0]
        is_known = scheme in _MAIL and (not _MAIL[scheme] or bool(found["EMAIL_HOST"]))
    except (ValueError, environ.ImproperlyConfigured):
        is_known = False
    if not is_known:
        said = "is not of the form smtp+tls://user:password@host:587 (smtp+ssl, smtp, filemail:///path, consolemail:)"
        print(f"EMAIL_URL {said}.", file=sys.stderr, flush=True)
        sys.exit(os.EX_CONFIG)
    return found | {
        "EMAIL_PORT": found["EMAIL_PORT"] or _MAIL[scheme],
        # Ours ends what a mail server draws out.
        **({"EMAIL_BACKEND": "webtask_scheduler.mail.EmailBackend"} if scheme.startswith("smtp") else {}),
        "EMAIL_HOST_USER": found["EMAIL_HOST_USER"] or "",
        "EMAIL_HOST_PASSWORD": found["EMAIL_HOST_PASSWORD"] or "",
    }


BASE_DIR = Path(__file__).resolve().parents[2]
env = environ.Env()

# Django
DEBUG = False
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
CSRF_FAILURE_VIEW = "webtask_scheduler.pages.csrf_failure"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "users.User"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = True
LANGUAGES = [
    ("en", "English"),
    ("ar", "العربية"),
    ("fr", "Français"),
    ("de", "Deutsch"),
    ("es", "Español"),
    ("pt-br", "Português (Brasil)"),
]
# The language of commands, and of answers to requests that ask for none of these.
LANGUAGE_CODE = one_of("DJANGO_LANGUAGE_CODE", *(code for code, _ in LANGUAGES))
LOCALE_PATHS = [BASE_DIR / "webtask_scheduler" / "locale"]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    # Django's admin, with our log-in.
    "webtask_scheduler.users.apps.AdminConfig",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    "django_celery_beat",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "webtask_scheduler.users",
    "webtask_scheduler.access",
    "webtask_scheduler.scheduler",
    "webtask_scheduler.dashboard",
]

MIDDLEWARE = [
    # First, so that whatever is logged and answered has the request's id.
    "webtask_scheduler.telemetry.origin.Middleware",
    # Outside of all that answers, so that each answer says what a browser may do with it.
    "webtask_scheduler.pages.BrowserRules",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "webtask_scheduler.pages.Languages",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "webtask_scheduler.pages.Messages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # Where the user is known: whoever sent the request is who did what it does.
    "webtask_scheduler.access.actor.Middleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        # The error pages.
        "DIRS": [BASE_DIR / "webtask_scheduler" / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# What a browser may load into our pages and do with them: their own files, nothing inline that runs, no frame, no other
# site. A style attribute runs nothing, and the admin has many. Django reads this setting from 6.0 on; until then
# pages.BrowserRules does, at no cost for a request, where django-csp builds the policy anew for each (75 microseconds).
SECURE_CSP = {
    "default-src": ["'none'"],
    "script-src": ["'self'"],
    # The style sheet of the error pages, which must not need a file; a test compares it with theirs.
    "style-src": ["'self'", "'sha256-WfADVW420FhXc/CcEItVL2eQwb0icpwrhcV9M7V+YUU='"],
    "style-src-attr": ["'unsafe-inline'"],
    "img-src": ["'self'", "data:"],
    "font-src": ["'self'"],
    "connect-src": ["'self'"],
    "form-action": ["'self'"],
    "base-uri": ["'none'"],
    "frame-ancestors": ["'none'"],
}
SECURE_REFERRER_POLICY = "same-origin"


# The admin
def _admin_path() -> str:
    """Return where the admin is, as `admin/`. Exits with a sentence if that cannot be its path."""
    path = os.environ.get("DJANGO_ADMIN_PATH", "").strip().strip("/") or "admin"
    if not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", path) or path.partition("/")[0] in _TAKEN:
        _refuse(
            "DJANGO_ADMIN_PATH",
            f"a path of letters, digits, _ and -, such as office/timers, that does not begin with {', '.join(_TAKEN)}",
        )
    return f"{path}/"


_TAKEN = (
    *(
        "api",
        "api-key",
        "audit",
        "dead",
        "demo",
        "favicon.ico",
        "flower",
        "healthz",
        "hosts",
        "i18n",
        "login",
        "logout",
    ),
    *("metrics", "notification", "notification-channel", "operations", "punctuality", "readyz", "settings"),
    *("signing-secret", "static", "system", "timer", "timers"),
)
ADMIN_PATH = _admin_path()
# Whether the admin asks for a code of an app beside the password: of no account, of those that have one, of all.
ADMIN_SECOND_FACTOR = one_of("DJANGO_ADMIN_SECOND_FACTOR", "optional", "off", "required")
OTP_TOTP_ISSUER = "webtask_scheduler"
# A key is shown when it is made, by `manage.py second_factor`, and to nobody afterwards.
OTP_ADMIN_HIDE_SENSITIVE_DATA = True
# A working day, counted from the log-in; closing the browser ends it as well.
SESSION_COOKIE_AGE = 3600 * whole_number("DJANGO_SESSION_HOURS", default=12, least=1, most=24 * 90)
SESSION_EXPIRE_AT_BROWSER_CLOSE = True
# How many proxies stand before us, each of which appends the address that it sees to X-Forwarded-For, or overwrites it.
WEBTASK_PROXIES = whole_number("WEBTASK_PROXIES", default=0, least=0, most=10)
AUTHENTICATION_BACKENDS = ["webtask_scheduler.users.backends.ThrottledBackend"]

PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

STATIC_URL = "static/"
STATIC_ROOT: Path | None = BASE_DIR / "staticfiles"

# PostgreSQL. A stopped or vanished process must not hold rows: the server ends its idle transactions, bounds its
# statements, and notices dead peers.
_DATABASE_URL = required(
    "DATABASE_URL",
    "start ./scripts/run, which brings a PostgreSQL for manage.py too; or put /entrypoint before a container's command;"
    " or name a PostgreSQL, as in postgres://user:password@host:5432/name",
)
try:
    if not _DATABASE_URL.startswith(("postgres://", "postgresql://")):
        raise ValueError  # noqa: TRY301 - a bad port raises it too
    DATABASES: dict[str, dict[str, Any]] = {"default": env.db_url_config(_DATABASE_URL)}
except ValueError:
    # Its value is not shown: it may hold a password.
    print("DATABASE_URL is not of the form postgres://user:password@host:5432/name.", file=sys.stderr, flush=True)
    sys.exit(os.EX_CONFIG)
DATABASES["default"]["ENGINE"] = "config.database"
DATABASES["default"]["CONN_MAX_AGE"] = None
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DATABASES["default"].setdefault("OPTIONS", {}).update(
    connect_timeout=5,
    keepalives=1,
    keepalives_idle=5,
    keepalives_interval=2,
    keepalives_count=3,
    # The queue's pages are in memory, so an index probe costs no disk seek, which the default of 4 assumes.
    options="-c idle_in_transaction_session_timeout=5s -c statement_timeout=30s -c random_page_cost=1.1",
)
# What stands between us and PostgreSQL, and whether it gives each client a session of its own; see config.database.
DATABASES["default"]["POOLER"] = one_of("DATABASE_POOLER", "none", "session", "transaction")
DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = DATABASES["default"]["POOLER"] == "transaction"

# Celery
REDIS_URL = required(
    "REDIS_URL",
    "start ./scripts/run, which brings a Redis for manage.py too, or name a Redis, as in redis://:password@host:6379/0",
)
CELERY_BROKER_URL = REDIS_URL
# With REDIS_URL=sentinel://:PASSWORD@HOST:26379/0;sentinel://:PASSWORD@HOST:26379/0 the sentinels say which server
# takes messages, by this name. They have a password of their own, or none.
REDIS_SENTINEL_MASTER = env.str("REDIS_SENTINEL_MASTER", default="")
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {}
if REDIS_URL.startswith("sentinel://"):
    if not REDIS_SENTINEL_MASTER:
        print("REDIS_SENTINEL_MASTER is not set, and REDIS_URL leads to sentinels.", file=sys.stderr, flush=True)
        sys.exit(os.EX_CONFIG)
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "master_name": REDIS_SENTINEL_MASTER,
        "sentinel_kwargs": {
            "password": env.str("REDIS_SENTINEL_PASSWORD", default="") or None,
            # A sentinel that is away costs this once; then the next one is asked.
            "socket_timeout": 1.0,
            "socket_connect_timeout": 1.0,
            "retry": Retry(NoBackoff(), 0),
        },
    }
# Results are not used: the outcome of a call is a row in PostgreSQL.
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_BACKEND = None
# Otherwise django-celery-beat adds a task of its own that deletes old results each night.
CELERY_RESULT_EXPIRES = None
CELERY_TIMEZONE = "UTC"
CELERY_ENABLE_UTC = True
CELERY_BEAT_SCHEDULER = "webtask_scheduler.scheduler.beat:TimerScheduler"
# Long tasks have a queue and a worker of their own, so that deliveries never wait for them.
CELERY_TASK_ROUTES = {
    f"webtask_scheduler.scheduler.tasks.{name}": {"queue": "upkeep"}
    for name in ("obey", "reconcile", "bulk", "prune", "notify")
}
# A worker holds no more messages than it works on; others wait in the broker in order.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Events on: Flower shows workers and tasks out of the box.
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# No task acknowledges late, so there is nothing to cancel; if unset, Celery warns of it at each loss.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
# A broker that answers but takes nothing, such as a full one, counts as away: try again, do not end.
CELERY_BROKER_CHANNEL_ERROR_RETRY = True

# API
# Who may call it: `key` asks for an API key; `open` asks for nothing, and only this machine may reach it then.
WEBTASK_API_AUTH = "key"
# Where the web server is reached, if that is not where it listens: a container's port as it is published.
WEBTASK_PUBLISHED_ON = env.str("WEBTASK_PUBLISHED_ON", default="").strip()
WEBTASK_OPEN_ON_PUBLIC = one_of("WEBTASK_OPEN_ON_PUBLIC", "no", MEANT)


def api_auth(default: str) -> str:
    """Return who may call the API. Exits with a sentence if it is open and others than this machine reach it.

    It asks HOST, which every process of ours may see; the web server itself asks where it listens.
    """
    found = one_of("WEBTASK_API_AUTH", default, *({"key", "open"} - {default}))
    if found == "open":
        refuse_open(
            listens_on=env.str("HOST", default="").strip() or "127.0.0.1",
            published_on=WEBTASK_PUBLISHED_ON,
            meant=WEBTASK_OPEN_ON_PUBLIC,
        )
    return found


REST_FRAMEWORK = {
    # The views of the API have them too. A view that forgets to say its scopes is closed.
    "DEFAULT_AUTHENTICATION_CLASSES": ["webtask_scheduler.access.authentication.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["webtask_scheduler.access.authentication.NeedsScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "webtask_scheduler.scheduler.api.problems.problem_response",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "webtask_scheduler",
    "DESCRIPTION": "Calls a URL at a promised time: never early, a few milliseconds late, at least once.",
    "VERSION": __version__,
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    # The document is in English whatever language a request asks for.
    "DEFAULT_GENERATOR_CLASS": "webtask_scheduler.scheduler.api.document.EnglishGenerator",
    "PREPROCESSING_HOOKS": ["webtask_scheduler.scheduler.api.document.versioned_only"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "webtask_scheduler.scheduler.api.document.bodies_required",
        "webtask_scheduler.scheduler.api.document.secured",
        "webtask_scheduler.scheduler.api.document.grouped",
    ],
    "WEBHOOKS": ["webtask_scheduler.scheduler.api.webhook.timer_due"],
    # Served from this service: the page works without the internet.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # A script, because JSON has no functions. The script of the page is an answer of its own.
    "SWAGGER_UI_SETTINGS": """{
  deepLinking: true,
  persistAuthorization: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  operationsSorter: (one, other) => one.getIn(["operation", "x-order"]) - other.getIn(["operation", "x-order"]),
}""",
    # `secured` says of the whole document that it takes a key; an operation says nothing of its own.
    "AUTHENTICATION_WHITELIST": [],
    "SERVE_AUTHENTICATION": [],
    "ENUM_NAME_OVERRIDES": {
        "TimerStatus": "webtask_scheduler.scheduler.models.State",
        "ErrorKind": "webtask_scheduler.scheduler.models.ErrorKind",
    },
}
# A request body larger than this is refused with 413; a single timer's is refused sooner, see views.
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 1024 * 1024


def _is_fault(record: LogRecord) -> bool:
    return getattr(record, "status_code", None) not in (503, 508)


# Who logs a traceback of its own for a database that is away.
_LOSING = ("celery.app.trace", "django.request", "django_celery_beat.schedulers")


def _without_traceback(record: LogRecord) -> bool:
    """Drop a traceback if one line is enough, and return False for a line that repeats another.

    One line is enough for a worker's lost or full broker, and for a request that is refused. Another part of Celery
    logs what a task raises; that keeps its traceback, unless the database was lost, which is no fault of the task.
    Requests that fail because the database is away are not logged one by one.
    """
    if record.exc_info is None and record.name != "django.request":
        return True
    # Late: these need settings.
    from django.db import InterfaceError, OperationalError

    from config.database.base import is_away
    from webtask_scheduler.telemetry.events import Message

    error = record.exc_info[1] if record.exc_info else None
    # What is refused as suspicious is the sender's fault, whatever code found it.
    if record.name.startswith(("celery.worker", "django.security")):
        record.exc_info = record.exc_text = None
    elif isinstance(error, OperationalError | InterfaceError) and record.name in _LOSING:
        task = getattr(record, "data", {}).get("name", "")
        what, fields = ("task_failed", {"task": task.rpartition(".")[2]}) if task else (record.getMessage(), {})
        # Later errors, such as a closed cursor, only follow from the first.
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        record.msg, record.args = Message(what, fields | {"error": " ".join(str(first).split())}), ()
        record.exc_info = record.exc_text = None
    return not (record.name == "django.request" and getattr(record, "status_code", 0) == 503 and is_away())  # noqa: PLR2004


# Logs: readable lines, or JSON for programs; docs/logs.md lists what is logged.
LOG_FORMAT = one_of("LOG_FORMAT", "line", "json")
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "webtask_scheduler.telemetry.logs.LineFormatter"},
        "json": {
            "()": "webtask_scheduler.telemetry.logs.JSONFormatter",
            # Datadog's own variables.
            "service": env.str("DD_SERVICE", default=""),
            "env": env.str("DD_ENV", default=""),
            "version": env.str("DD_VERSION", default=""),
        },
    },
    "filters": {
        # What is refused with 503 or 508 is said once by whoever finds the cause, not again for every request.
        "faults": {"()": "django.utils.log.CallbackFilter", "callback": _is_fault},
        "one_line": {"()": "django.utils.log.CallbackFilter", "callback": _without_traceback},
        "exporter": {"()": "webtask_scheduler.telemetry.logs.Seldom", "name": "opentelemetry"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT, "filters": ["one_line", "exporter"]}
    },
    "root": {"handlers": ["console"], "level": one_of("LOG_LEVEL", "INFO", "DEBUG", "WARNING", "ERROR", "CRITICAL")},
    "loggers": {
        # A line for every message received and done is noise: the attempt row holds the outcome.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        "kombu": {"level": "WARNING"},
        # What a client got wrong is told to the client.
        "django.request": {"level": "ERROR", "filters": ["faults"]},
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        # The HTTP clients of Sentry and OpenTelemetry warn of each try.
        "urllib3": {"level": "ERROR"},
    },
}

# Whether the web server writes a line for each request: without its query, which may hold what is not for others.
WEB_ACCESS_LOG = one_of("WEB_ACCESS_LOG", "off", "on") == "on"
# Errors go to Sentry too, if there is one. Its library is loaded by the handler alone.
SENTRY_DSN = env.str("SENTRY_DSN", default="")
if SENTRY_DSN:
    LOGGING["handlers"]["sentry"] = {
        "()": "webtask_scheduler.telemetry.errors.SentryHandler",
        "dsn": SENTRY_DSN,
        "release": __version__,
        "environment": env.str("SENTRY_ENVIRONMENT", default="production"),
        "filters": ["one_line", "exporter"],
    }
    LOGGING["root"]["handlers"].append("sentry")

# OpenTelemetry reads its own variables. Here is only whether it is on, and what is sent where.
_exporters = one_of("OTEL_TRACES_EXPORTER", "otlp", "console", "none")
_endpoints = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_is_traced = any(env.str(name, default="") for name in _endpoints) and _exporters != "none"
TRACES_EXPORTERS = (
    [_exporters] if _is_traced and env.str("OTEL_SDK_DISABLED", default="").strip().lower() != "true" else []
)
if TRACES_EXPORTERS == ["otlp"]:
    # The one that is installed.
    one_of("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")

# Timers
# Calls that one worker process makes side by side.
WEBTASK_CALLERS = whole_number("WEBTASK_CALLERS", default=32, least=1, most=1000)
# How many overdue timers a second one beat works off after an outage; 0 is as fast as the workers are.
WEBTASK_BACKLOG_PER_SECOND = number("WEBTASK_BACKLOG_PER_SECOND", default=0.0, least=0, most=1_000_000)
# A whole call, from looking up the name to the last byte read.
WEBTASK_CALL_TIMEOUT_SECONDS = number("WEBTASK_CALL_TIMEOUT_SECONDS", default=30.0, least=0.1, most=3600)
# The longest body that a timer may send.
WEBTASK_BODY_LIMIT_BYTES = whole_number(
    "WEBTASK_BODY_LIMIT_BYTES", default=256 * 1024, least=0, most=DATA_UPLOAD_MAX_MEMORY_SIZE
)
# Which addresses are called; see docs/security.md. Production allows no more than public ones.
WEBTASK_EGRESS = egress(allow="")
# Authorities that are trusted instead of those of `certifi`.
WEBTASK_EGRESS_CA_BUNDLE = certificates("WEBTASK_EGRESS_CA_BUNDLE")
# The proxy that all calls go through. Variables such as HTTPS_PROXY are not read.
WEBTASK_EGRESS_PROXY = proxy("WEBTASK_EGRESS_PROXY")
# Days that timers are kept after they ended; 0 keeps them forever.
WEBTASK_RETENTION_DAYS = whole_number("WEBTASK_RETENTION_DAYS", default=30, least=0, most=36_500)
# How many of its latest deliveries a timer keeps, with their attempts; 0 keeps all until they are too old.
WEBTASK_KEEP_DELIVERIES = whole_number("WEBTASK_KEEP_DELIVERIES", default=1000, least=0, most=1_000_000)
# Of which attempts the headers of the answer are kept.
WEBTASK_KEEP_HEADERS = one_of("WEBTASK_KEEP_HEADERS", "failed", "all", "none")
# How far ahead a timer may be due: ten years.
WEBTASK_HORIZON_SECONDS = whole_number(
    "WEBTASK_HORIZON_SECONDS", default=10 * 365 * 24 * 3600, least=1, most=100 * 366 * 24 * 3600
)

# What one owner may do and have; 0 is without limit, and so is the default on a laptop. config.settings.production has
# other defaults. Requests of the API a second, where ten seconds' worth may come at once after a pause.
WEBTASK_LIMIT_REQUESTS_PER_SECOND = number("WEBTASK_LIMIT_REQUESTS_PER_SECOND", default=0.0, least=0, most=1_000_000)
# Requests with wrong API keys from one address within a minute, before they are answered 429. Right keys always work.
WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE = whole_number(
    "WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE", default=0, least=0, most=1_000_000
)
# Timers that wait or are paused.
WEBTASK_LIMIT_TIMERS_WAITING = whole_number("WEBTASK_LIMIT_TIMERS_WAITING", default=0, least=0, most=1_000_000_000)
# Calls a second that all its recurring timers promise together.
WEBTASK_LIMIT_RECURRING_PER_SECOND = number("WEBTASK_LIMIT_RECURRING_PER_SECOND", default=0.0, least=0, most=1_000_000)
# The shortest time between two attempts at a delivery, and between two moments of a timer that recurs by an interval.
WEBTASK_LIMIT_GAP_SECONDS = number("WEBTASK_LIMIT_GAP_SECONDS", default=0.0, least=0, most=60)
# Bulk operations that have not ended.
WEBTASK_LIMIT_BULK_OPEN = whole_number("WEBTASK_LIMIT_BULK_OPEN", default=10, least=0, most=10_000)
# What timers of one page of the list may take; one timer is always given.
WEBTASK_LIMIT_ANSWER_BYTES = whole_number(
    "WEBTASK_LIMIT_ANSWER_BYTES", default=4 * 1024 * 1024, least=64 * 1024, most=1024**3
)
# What all owners and all workers together may do to one host: calls begun a second, and calls under way; 0 is without
# limit.
WEBTASK_HOST_MAX_PER_SECOND = number("WEBTASK_HOST_MAX_PER_SECOND", default=0.0, least=0, most=1_000_000)
WEBTASK_HOST_MAX_IN_FLIGHT = whole_number("WEBTASK_HOST_MAX_IN_FLIGHT", default=0, least=0, most=1_000_000)
# A channel is told at most once in so many seconds; what happens meanwhile is in its next message.
WEBTASK_NOTIFY_SECONDS = whole_number("WEBTASK_NOTIFY_SECONDS", default=60, least=10, most=24 * 3600)
# Where people reach the pages, for links in messages; without it they have none.
WEBTASK_PUBLIC_URL = public_url("WEBTASK_PUBLIC_URL")
# Domains to whose addresses owners may have mail sent, besides their own address. Operators may send to any.
WEBTASK_MAIL_DOMAINS = [
    domain.strip().lower() for domain in os.environ.get("WEBTASK_MAIL_DOMAINS", "").split(",") if domain.strip()
]
# The mail server, none by default; and whom mail comes from. Servers look into a mail before they take it, and one that
# is taken after we stopped waiting is sent again. So the patience is long; `webtask_scheduler.mail` bounds the whole.
vars().update(mail("dummymail:"))
EMAIL_TIMEOUT = 60
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="").strip() or "webtask_scheduler@localhost"
# Days that entries of the audit log are kept; 0 keeps them forever.
WEBTASK_AUDIT_DAYS = whole_number("WEBTASK_AUDIT_DAYS", default=365, least=0, most=36_500)

# What /punctuality and /status measure the service by: so many per cent of first attempts begin within so many seconds
# of their moments. The seconds are one of the bounds by which lateness is counted, because nothing finer is known.
WEBTASK_SLO_PERCENT = number("WEBTASK_SLO_PERCENT", default=99.0, least=1, most=99.999)
WEBTASK_SLO_SECONDS = float(
    one_of(
        "WEBTASK_SLO_SECONDS",
        *dict.fromkeys(("0.1", *(f"{bound:g}" for bound in import_string(f"{_RULES}.histogram.BOUNDS")))),
    )
)
# Whether anybody may see /status, without a log-in.
WEBTASK_STATUS = one_of("WEBTASK_STATUS", "off", "public") == "public"

# The URL of the demo receiver, or its path; empty for none.
WEBTASK_DEMO_RECEIVER = ""

# Where a browser finds Flower, for a link in the menu and on /system; empty for none. `./scripts/run` says it, and
# docker-compose.production.yml says FLOWER=on, where it is behind Caddy.
WEBTASK_FLOWER_URL = os.environ.get("WEBTASK_FLOWER_URL", "").strip()
if not re.fullmatch(r"(https?:/)?/[^\s\"'<>\\]*|", WEBTASK_FLOWER_URL):
    _refuse("WEBTASK_FLOWER_URL", "a URL that begins with http:// or https://, or a path such as /flower/")
if one_of("FLOWER", "off", "on") == "on":
    WEBTASK_FLOWER_URL = WEBTASK_FLOWER_URL or "/flower/"

# Metrics, for operators: at /metrics with this token, at a port of their own, or both. Where neither is set, they are
# refused unless they are open.
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")
METRICS_PORT = whole_number("METRICS_PORT", default=0, least=0, most=65_535)
METRICS_ADDRESS = env.str("METRICS_ADDRESS", default="127.0.0.1")
METRICS_OPEN = False

# Upkeep, declared as ordinary periodic tasks. A message that is not taken before the next one is due is dropped.
CELERY_BEAT_SCHEDULE = {
    "webtask_scheduler reconcile": {
        "task": "webtask_scheduler.scheduler.tasks.reconcile",
        "schedule": 30.0,
        "options": {"expire_seconds": 30},
    },
    "webtask_scheduler prune": {
        "task": "webtask_scheduler.scheduler.tasks.prune",
        "schedule": 60.0,
        "options": {"expire_seconds": 60},
    },
    "webtask_scheduler notify": {
        "task": "webtask_scheduler.scheduler.tasks.notify",
        "schedule": 10.0,
        "options": {"expire_seconds": 10},
    },
}
