"""A server on a public address: nothing is assumed; a missing, default or weak setting stops the start and is named."""

import os
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

# Each may be given as a file as well: NAME_FILE holds its path, as Docker and Kubernetes mount secrets.
SECRETS = ("DJANGO_SECRET_KEY", "DATABASE_URL", "REDIS_URL", "WEBTASK_ENCRYPTION_KEYS")
# What .envs/.local and .envs/.production.example hold, and what Django's own generator marks as unsafe.
_KNOWN = ("local-only", "local-development-only", "change-me", "django-insecure-")
# As Django's own check has it.
_KEY_LENGTH = 50
_KEY_VARIETY = 5
_PASSWORD_LENGTH = 12


def _refuse(name: str, why: str) -> NoReturn:
    """End the process with one line. It never shows the value, because that is a secret."""
    print(f"{name} {why}.", file=sys.stderr, flush=True)
    sys.exit(os.EX_CONFIG)


def secret(name: str) -> str:
    """Return a secret from NAME or from the file that NAME_FILE names, and leave it in the environment as NAME."""
    value = os.environ.get(name, "").strip()
    path = os.environ.get(f"{name}_FILE", "").strip()
    if path and not value:
        try:
            value = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            _refuse(f"{name}_FILE", f"names {path}, which cannot be read: {type(error).__name__}")
    if not value:
        _refuse(name, f"is not set: give {name}, or {name}_FILE with the path of a file that holds it")
    if any(known in value for known in _KNOWN):
        _refuse(name, "is a default that everybody knows: give one of your own (./scripts/production init makes it)")
    os.environ[name] = value
    return value


def _check_key(key: str) -> None:
    if len(key) < _KEY_LENGTH:
        _refuse("DJANGO_SECRET_KEY", f"has {len(key)} characters: it must have {_KEY_LENGTH} or more")
    if len(set(key)) < _KEY_VARIETY:
        _refuse("DJANGO_SECRET_KEY", f"has {len(set(key))} different characters: it must be random")


def _check_password(name: str, url: str) -> None:
    """Refuse a URL of a server on the network without a password, or with a short one."""
    try:
        parts = urlsplit(url)
        host, password = parts.hostname, parts.password or ""
    except ValueError:
        _refuse(name, "is no URL: a character of its password may need to be written as %XX")
    if host and len(password) < _PASSWORD_LENGTH:
        what = f"has a password of {len(password)} characters" if password else "has no password"
        _refuse(name, f"{what}: it must have one of {_PASSWORD_LENGTH} or more")


_check_key(secret("DJANGO_SECRET_KEY"))
for _name in ("DATABASE_URL", "REDIS_URL"):
    _check_password(_name, secret(_name))
secret("WEBTASK_ENCRYPTION_KEYS")
if os.environ.get("EMAIL_URL", "").strip() or os.environ.get("EMAIL_URL_FILE", "").strip():
    secret("EMAIL_URL")
    if not os.environ.get("DEFAULT_FROM_EMAIL", "").strip():
        _refuse("DEFAULT_FROM_EMAIL", "is not set: EMAIL_URL is, so say whom mail comes from, as timers@example.com")

from config.settings.base import *  # noqa: E402
from config.settings.base import (  # noqa: E402
    DATABASES,
    LOGGING,
    MIDDLEWARE,
    api_auth,
    encryption_keys,
    env,
    number,
    one_of,
    whole_number,
)

LOG_FORMAT = one_of("LOG_FORMAT", "json", "line")
LOGGING["handlers"]["console"]["formatter"] = LOG_FORMAT

WEBTASK_API_AUTH = api_auth("key")
SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
# The first encrypts, all decrypt: a new one is put before the others, and `manage.py rotate_encryption` follows.
WEBTASK_ENCRYPTION_KEYS = encryption_keys()
ALLOWED_HOSTS = [host.strip() for host in os.environ.get("DJANGO_ALLOWED_HOSTS", "").split(",") if host.strip()]
if not ALLOWED_HOSTS:
    _refuse("DJANGO_ALLOWED_HOSTS", "is not set: give the names that this service answers to, with commas between them")
if "*" in ALLOWED_HOSTS:
    _refuse("DJANGO_ALLOWED_HOSTS", "is *: name the hosts, or a forged Host would be written into links")

# Only this schema, so that a view of old names for processes of the release before does not hide a table (see
# migration 0012 and docs/operations.md, "Upgrade").
DATABASES["default"]["OPTIONS"]["options"] += " -c search_path=public"

# What one owner may do and have, see the base settings.
WEBTASK_LIMIT_REQUESTS_PER_SECOND = number("WEBTASK_LIMIT_REQUESTS_PER_SECOND", default=100.0, least=0, most=1_000_000)
WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE = whole_number(
    "WEBTASK_LIMIT_WRONG_KEYS_PER_MINUTE", default=60, least=0, most=1_000_000
)
WEBTASK_LIMIT_TIMERS_WAITING = whole_number(
    "WEBTASK_LIMIT_TIMERS_WAITING", default=100_000, least=0, most=1_000_000_000
)
WEBTASK_LIMIT_RECURRING_PER_SECOND = number("WEBTASK_LIMIT_RECURRING_PER_SECOND", default=50.0, least=0, most=1_000_000)
WEBTASK_LIMIT_GAP_SECONDS = number("WEBTASK_LIMIT_GAP_SECONDS", default=1.0, least=0, most=60)
# Caddy, or whatever stands in its place.
WEBTASK_PROXIES = whole_number("WEBTASK_PROXIES", default=1, least=0, most=10)

# HTTPS. The proxy before us must overwrite X-Forwarded-Proto, as compose/production/caddy/Caddyfile does. What may
# change something is refused over plain HTTP, what only reads is redirected, and probes are answered under any name.
_ENTRY = "webtask_scheduler.scheduler.api.entry"
MIDDLEWARE = [f"{_ENTRY}.Probes", f"{_ENTRY}.HttpsOnly", *MIDDLEWARE]
# Scraped from inside; it asks for a token of its own.
SECURE_REDIRECT_EXEMPT = [r"^metrics$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = env.bool("DJANGO_SECURE_SSL_REDIRECT", default=True)
# Where HTTPS is on another port than 443, the name with that port.
SECURE_SSL_HOST = env.str("DJANGO_SECURE_SSL_HOST", default="") or None
SECURE_HSTS_SECONDS = whole_number("DJANGO_SECURE_HSTS_SECONDS", default=3600, least=0, most=10 * 365 * 24 * 3600)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("DJANGO_SECURE_HSTS_INCLUDE_SUBDOMAINS", default=True)
SECURE_HSTS_PRELOAD = env.bool("DJANGO_SECURE_HSTS_PRELOAD", default=False)
# Being on the browsers' preload list binds a whole domain for months: its owner decides that, not a default.
SILENCED_SYSTEM_CHECKS = ["security.W021"]
SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
# Only where a proxy changes the Host: as Caddy passes it on, the admin's forms come from the origin that Django sees.
CSRF_TRUSTED_ORIGINS = env.list("DJANGO_CSRF_TRUSTED_ORIGINS", default=[])
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
