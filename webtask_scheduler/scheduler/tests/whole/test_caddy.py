"""Caddy as it is shipped, before a real web process: what neither Django nor our reader of bodies answers."""

import os
import shutil
import socket
import subprocess
import time

import pytest

from webtask_scheduler.scheduler.tests.support.service import CHECKOUT

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(shutil.which("caddy") is None, reason="Caddy is not installed here"),
]
CADDYFILE = CHECKOUT / "compose" / "production" / "caddy" / "Caddyfile"
NOTHING = b"content-security-policy: default-src 'none'; frame-ancestors 'none'"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def caddy(web, tmp_path):
    """Return the port of a Caddy before a web process; both speak plain HTTP."""
    port = free_port()
    text = CADDYFILE.read_text()
    shipped = {
        "web:8000": f"127.0.0.1:{web.port}",
        "auto_https disable_redirects": f"http_port {free_port()}\n\tadmin off",
    }
    for found, ours in shipped.items():
        assert text.count(found) == 1
        text = text.replace(found, ours)
    path = tmp_path / "Caddyfile"
    path.write_text(text)
    environment = os.environ | {
        "SITE_DOMAIN": f"http://localhost:{port}",
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["caddy", "run", "--config", path, "--adapter", "caddyfile"], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail((tmp_path / "log").read_text())
        yield port
    finally:
        process.terminate()
        process.wait(20)


def ask(port, more=b"", *, path=b"/healthz", body=b""):
    """Return the first bytes of an answer, with the names of its headers in lower case."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        head = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + more + b"\r\n"
        connection.sendall(head + body)
        text = b""
        while chunk := connection.recv(65536):
            text += chunk
    head, _, body = text.partition(b"\r\n\r\n")
    return head.lower() + b"\r\n\r\n" + body


def test_each_answer_says_what_a_browser_may_do_with_it(caddy, web):
    # Django's own rules stay as they are.
    page = ask(caddy, path=b"/login", more=b"Accept: text/html\r\n")
    assert page.count(b"content-security-policy:") == 1
    assert b"script-src 'self'" in page
    many = b"".join(b"X-A%d: b\r\n" % number for number in range(150))
    refused = ask(caddy, many)
    assert refused.startswith(b"http/1.1 431 ")
    assert b"content-type: application/problem+json" in refused
    assert b"The headers of the request are too long, and nothing was done." in refused
    assert NOTHING in refused
    assert b"x-content-type-options: nosniff" in refused
    # It is granian's own: without Caddy it is empty.
    assert ask(web.port, many).endswith(b"\r\n\r\n")
    web.stop("web")
    away = ask(caddy)
    assert away.startswith(b"http/1.1 503 ")
    assert b"application/problem+json" in away
    assert NOTHING in away
    web.start("web")
