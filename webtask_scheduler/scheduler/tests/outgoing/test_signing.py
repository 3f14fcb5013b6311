"""Signatures, as the library that receivers use reads them."""

import base64
import json
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from webtask_scheduler.scheduler.outgoing.signing import check_secret, new_secret, signature
from webtask_scheduler.scheduler.tests.support.cases import each

BODY = b'{"task_id": "0192", "due_at": "2030-01-01T00:00:00+00:00"}'


def signed(secrets, *, message_id="msg_1", timestamp=None, body=BODY):
    timestamp = timestamp or int(time.time())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secrets, message_id=message_id, timestamp=timestamp, body=body),
    }


def encoded(size):
    return "whsec_" + base64.b64encode(b"k" * size).decode()


def test_signature_of_a_published_example():
    # Of the reference libraries' own tests: what ours and the library make alike could still be wrong.
    assert (
        signature(
            ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
            timestamp=1614265330,
            body=b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_receiver_verifies_a_call():
    secret = new_secret()
    assert Webhook(secret).verify(BODY, signed([secret])) == json.loads(BODY)


def test_receiver_verifies_with_any_one_of_several_secrets():
    secrets = [new_secret() for _ in range(3)]
    headers = signed(secrets)
    assert len(headers["webhook-signature"].split(" ")) == 3
    for secret in secrets:
        Webhook(secret).verify(BODY, headers)


def test_receiver_refuses_with_another_secret():
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, signed([new_secret(), new_secret()]))


@each("changed", ["body", "webhook-id", "webhook-timestamp"])
def test_receiver_refuses_what_was_changed_on_the_way(changed):
    secret = new_secret()
    headers, body = signed([secret]), BODY
    if changed == "body":
        body = BODY.replace(b"2030", b"2031")
    else:
        headers[changed] = {"webhook-id": "msg_2", "webhook-timestamp": str(int(time.time()) - 1)}[changed]
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


def test_body_need_not_be_text():
    assert signature([encoded(32)], message_id="1", timestamp=1, body=b"\xff\0").startswith("v1,")


def test_new_secrets_differ_and_pass_the_check():
    secrets = {new_secret() for _ in range(10)}
    assert len(secrets) == 10
    for secret in secrets:
        check_secret(secret)


@each("size", [24, 25, 26, 64])
def test_check_takes_a_secret(size):
    check_secret(encoded(size))


@each(
    ("text", "sentence"),
    [
        ("", "begins with"),
        ("secret", "begins with"),
        (encoded(32).removeprefix("whsec_"), "begins with"),
        (encoded(32).upper(), "begins with"),
        ("whsec_", "24 to 64"),
        (encoded(23), "24 to 64"),
        (encoded(65), "24 to 64"),
        (encoded(25).rstrip("="), "base64"),
        (encoded(32) + "\n", "base64"),
        (encoded(24).replace("a", "-"), "base64"),
        (encoded(24) + "\u00e9", "base64"),
    ],
)
def test_check_refuses_a_secret_without_repeating_it(text, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_secret(text)
    assert len(text) < 10 or text not in str(caught.value)
