"""Sending mail ends, whatever the server does."""

import smtplib
import socket
import time
from contextlib import suppress

import pytest
from django.core.mail import EmailMessage

from webtask_scheduler import mail
from webtask_scheduler.scheduler.services import notifying
from webtask_scheduler.scheduler.tests.support.mail import Mailbox, drip, endless, hang_up, say, silent


def sent(port, **more):
    """Send a mail, and close the connection; return the error that it ended with."""
    server = mail.EmailBackend(host="127.0.0.1", port=port, timeout=60, **more)
    found = None
    try:
        EmailMessage("Hello", "World", "me@example.com", ["you@example.com"], connection=server).send()
    except (OSError, smtplib.SMTPException) as error:
        found = error
    with suppress(OSError, smtplib.SMTPException):
        server.close()
    return found


@pytest.fixture
def impatient(monkeypatch):
    for name in ("OPEN_SECONDS", "SEND_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(mail, name, 0.3)


def test_each_step_ends_however_the_server_draws_it_out(monkeypatch, subtests):
    words = (b"HELO", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"DONE")
    cases = [(word, answer) for word in words for answer in (drip, hang_up)]
    for word, answer in [*cases, (b"HELO", silent), (b"DONE", silent), (b"EHLO", endless), (b"DONE", endless)]:
        with subtests.test(word=word, answer=answer.__name__), Mailbox() as box, monkeypatch.context() as patch:
            # The other step has the time that it has.
            step = "OPEN_SECONDS" if word == b"HELO" else "SEND_SECONDS"
            patch.setattr(mail, step, 0.2)
            patch.setattr(mail, "CLOSE_SECONDS", 0.2)
            box.instead = {word: answer}
            begun = time.monotonic()
            assert isinstance(sent(box.port), OSError)
            # Without an end of its own, each would take the minute of a silent socket, or for ever.
            assert time.monotonic() - begun < 20
            assert len(box.mails) <= (word == b"DONE")


def test_goodbye_ends_too(impatient):
    with Mailbox() as box:
        box.instead = {b"QUIT": drip}
        begun = time.monotonic()
        assert sent(box.port) is None
        assert time.monotonic() - begun < 20
        assert len(box.mails) == 1


def test_encryption_that_is_begun_and_drawn_out_ends(impatient, subtests):
    def record(out):
        # The beginning of a record of TLS that never comes to its end.
        out.write(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")
        return drip(out, each=b"\x00")

    with subtests.test("STARTTLS"), Mailbox() as box:
        box.instead = {
            b"EHLO": say(b"250-me\r\n250 STARTTLS\r\n"),
            b"STAR": lambda out: out.write(b"220 go\r\n") and record(out),
        }
        begun = time.monotonic()
        assert isinstance(sent(box.port, use_tls=True), OSError)
        assert time.monotonic() - begun < 20
    with subtests.test("from its beginning"), Mailbox() as box:
        box.instead = {b"HELO": record}
        begun = time.monotonic()
        assert isinstance(sent(box.port, use_ssl=True), OSError)
        assert time.monotonic() - begun < 20


def test_connection_that_is_made_too_late_is_not_used(monkeypatch, impatient):
    made = socket.create_connection

    def slow(*args, **kwargs):
        # Longer than it is given here.
        time.sleep(0.6)
        return made(*args, **kwargs)

    with Mailbox() as box:
        monkeypatch.setattr(socket, "create_connection", slow)
        assert isinstance(sent(box.port), TimeoutError)
        assert box.mails == []


def test_mail_takes_no_longer_than_the_lease_of_its_sender():
    assert notifying.MAIL_LEASE.total_seconds() > 1.5 * mail.MOST_SECONDS
