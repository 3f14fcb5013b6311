"""The pages that people see instead of what they asked for, and what programs get in their place."""

import base64
import hashlib
import json
import re

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.test import Client, RequestFactory

from webtask_scheduler import pages
from webtask_scheduler.scheduler.tests.support.cases import each

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def raising(error):
    """Call a handler as Django does: while the error is being handled."""

    def answer(handler, request):
        try:
            raise error
        except type(error):
            return handler(request)

    return answer


def too_large(request):
    # Its token is not read, because nothing of it is.
    request.META["CONTENT_LENGTH"] = str(4 * 1024 * 1024 + 1)
    return pages.csrf_failure(request, "CSRF token missing.")


PAGES = {
    "400": (400, lambda request: pages.bad_request(request, ValueError()), "This request cannot be read"),
    "403": (403, lambda request: pages.permission_denied(request, PermissionDenied()), "You may not see this page"),
    "403_csrf": (
        403,
        lambda request: pages.csrf_failure(request, "CSRF cookie not set."),
        "This form was not accepted",
    ),
    "413": (413, too_large, "That is too large"),
    "404": (404, lambda request: pages.not_found(request, ValueError()), "There is nothing at this address"),
    "500": (
        500,
        lambda request: raising(RuntimeError())(pages.server_error, request),
        "Something went wrong on our side",
    ),
    "503": (
        503,
        lambda request: raising(OperationalError())(pages.server_error, request),
        "The database does not answer",
    ),
}


def ask(path="/nonsense", *, accept=BROWSER, language="en", request_id=""):
    request = RequestFactory().get(path, headers={"accept": accept, "accept-language": language})
    if request_id:
        request.request_id = request_id
    return request


@each("name", PAGES)
def test_page_says_what_happened_without_database_session_or_static_file(name):
    # No mark: this test may not use the database.
    status, answer_to, heading = PAGES[name]
    answer = answer_to(ask(request_id="abc-123"))
    text = answer.content.decode()
    assert answer.status_code == status
    assert answer["Content-Type"].startswith("text/html")
    assert answer["Content-Language"] == "en"
    assert {"Accept", "Accept-Language"} <= {one.strip() for one in answer["Vary"].split(",")}
    assert f"<h1>{heading}</h1>" in text
    assert "<code>abc-123</code>" in text
    # Its icon is inside it too.
    assert not re.search(r"<(link(?! rel=\"icon\" href=\"data:)|script|img)\b|style=|\bsrc=", text)


def test_page_without_request_id_does_not_speak_of_one():
    assert "<footer>" not in PAGES["404"][1](ask()).content.decode()


def test_request_id_is_escaped():
    assert "<b>" not in PAGES["404"][1](ask(request_id="<b>x")).content.decode()


@pytest.mark.parametrize("name", PAGES)
def test_style_of_each_page_has_the_hash_that_the_policy_allows(name, settings):
    (style,) = re.findall(r"<style>(.*?)</style>", PAGES[name][1](ask()).content.decode(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in settings.SECURE_CSP["style-src"]


@each("language", ["ar", "de", "es", "fr", "pt-br"])
@each("name", PAGES)
def test_page_is_in_the_language_of_the_request(name, language):
    answer = PAGES[name][1](ask(language=language))
    text = answer.content.decode()
    assert answer["Content-Language"] == language
    assert f'<html lang="{language}"' in text
    assert ('dir="rtl"' in text) == (language == "ar")
    assert PAGES[name][2] not in text


@each(
    ("path", "accept", "is_page"),
    [
        ("/nonsense", BROWSER, True),
        ("/nonsense", "text/html", True),
        ("/nonsense", "*/*", False),
        ("/nonsense", "application/json", False),
        ("/nonsense", "application/problem+json", False),
        ("/nonsense", "image/png", False),
        ("/admin/nonsense", BROWSER, True),
        ("/admin/nonsense", "*/*", True),
        ("/admin/nonsense", "application/json", False),
        ("/timer/a/b/c", BROWSER, False),
        ("/timers/nonsense", BROWSER, True),
        ("/api/nonsense", BROWSER, False),
    ],
)
def test_page_is_for_people_and_a_problem_for_programs(path, accept, is_page):
    answer = PAGES["404"][1](ask(path, accept=accept))
    assert answer.status_code == 404
    if is_page:
        assert answer["Content-Type"].startswith("text/html")
    else:
        assert answer["Content-Type"] == "application/problem+json"
        body = json.loads(answer.content)
        assert (body["type"], body["title"], body["status"]) == ("about:blank", "Not Found", 404)


def test_lost_database_is_said_with_a_time_to_come_back():
    answer = PAGES["503"][1](ask("/admin/", accept="application/json"))
    assert json.loads(answer.content)["title"] == "Service Unavailable"
    assert answer["Retry-After"] == "1"


# Real requests.


@pytest.mark.django_db
@each("path", ["/nonsense", "/admin/nonsense"])
def test_unknown_address(client, path):
    client.force_login(get_user_model().objects.create_superuser("ada@example.com", "x"))
    answer = client.get(path, headers={"accept": BROWSER})
    assert answer.status_code == 404
    assert b"There is nothing at this address" in answer.content


def test_unknown_host(client, settings):
    settings.ALLOWED_HOSTS = ["good.example"]
    answer = client.get("/admin/", headers={"accept": BROWSER, "host": "bad.example", "accept-language": "de"})
    assert (answer.status_code, answer["Content-Language"]) == (400, "de")
    assert b"<h1>" in answer.content
    answer = client.get("/timer", headers={"host": "bad.example"})
    said = "The service does not answer to the name in the Host header; DJANGO_ALLOWED_HOSTS is the list."
    assert (answer.status_code, answer.json()["detail"]) == (400, said)


@pytest.mark.django_db
def test_page_of_the_admin_that_somebody_may_not_see(client):
    user = get_user_model().objects.create_user("bob@example.com", "x", is_staff=True)
    client.force_login(user)
    answer = client.get("/admin/scheduler/timer/", headers={"accept": BROWSER})
    assert answer.status_code == 403
    assert b"You may not see this page" in answer.content


def test_form_without_its_token():
    client = Client(enforce_csrf_checks=True)
    answer = client.post("/admin/login/", {"username": "a", "password": "b"}, headers={"accept": BROWSER})
    assert answer.status_code == 403
    assert b"This form was not accepted" in answer.content
    answer = client.post("/i18n/setlang/", {"language": "de"}, headers={"accept": "application/json"})
    assert answer.json()["detail"] == "CSRF Failed: CSRF cookie not set."


@pytest.mark.django_db
def test_fault_of_ours_in_the_admin(client, monkeypatch):
    client.force_login(get_user_model().objects.create_superuser("ada@example.com", "x"))
    client.raise_request_exception = False

    def fail(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr("webtask_scheduler.scheduler.facts.warnings", fail)
    answer = client.get("/admin/scheduler/timer/", headers={"accept": BROWSER})
    assert answer.status_code == 500
    assert b"Something went wrong on our side" in answer.content
    assert b"a fault" not in answer.content


@pytest.mark.django_db
@each(
    "path", ["/", "/api/docs", "/api/docs?script=", "/api/schema", "/timer", "/admin/login/", "/nonsense", "/healthz"]
)
def test_every_answer_says_what_a_browser_may_do_with_it(client, path):
    answer = client.get(path, headers={"accept": BROWSER})
    policy = dict(rule.split(" ", 1) for rule in answer["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "unsafe" not in policy["style-src"]
    assert answer["Permissions-Policy"].count("=()") > 10
    assert answer["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Frame-Options"] == "DENY"


@pytest.mark.django_db
@each("path", ["/api/docs", "/admin/login/", "/nonsense"])
def test_no_page_has_a_script_inside_it(client, path):
    text = client.get(path, headers={"accept": BROWSER}).content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon[a-z]+=|javascript:", text)
