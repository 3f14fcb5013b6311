"""What is kept of an answer's headers."""

from webtask_scheduler.scheduler.rules import answers
from webtask_scheduler.scheduler.rules.answers import BYTES_MOST, MASK, NAMES_MOST, keep, read


def kept(headers, **more):
    return read(keep(headers, **more)).headers


def test_headers_come_back_as_they_were_with_their_secrets_masked():
    given = {
        "content-type": "text/html; charset=utf-8",
        "empty": "",
        "with": "a: b: c",
        "www-authenticate": 'Bearer error="invalid_token"',
        "set-cookie": "session=abc; Path=/",
        "authorization": "Bearer abc",
        "x-api-key": "k",
        "x-amz-security-token": "t",
        "x-csrf-token": "c",
        "x-pwd": "p",
        "proxy-authorization": "Basic abc",
        "x-hub-signature-256": "sha256=00",
    }
    found = kept(given)
    assert list(found) == list(given)
    secret = list(given)[4:]
    assert {name: found[name] for name in secret} == dict.fromkeys(secret, MASK)
    assert {name: value for name, value in found.items() if name not in secret} == dict(list(given.items())[:4])


def test_urls_lose_user_query_and_fragment():
    for value, expected in {
        "https://user:pass@example.com/a?sig=1#x": "https://***@example.com/a?***",
        "https://example.com/cb#access_token=1": "https://example.com/cb#***",
        "https://example.com/a?": "https://example.com/a?",
        "/relative?code=1": "/relative?***",
        '<https://a.example/?page=2>; rel="next", </b?c=d>': '<https://a.example/?***>; rel="next", </b?***>',
    }.items():
        assert kept({"location": value}) == {"location": expected}, value
    assert kept({"x-said": "really?yes"}) == {"x-said": "really?yes"}
    assert kept({"x-seen": "at https://u:p@h/?a=b now"}) == {"x-seen": "at https://***@h/?*** now"}


def test_secrets_that_the_answer_repeats_are_masked():
    secrets = answers.secrets_of(
        {"Authorization": "Bearer topsecret123", "X-Short-Key": "abc", "Accept": "application/json"}
    )
    assert secrets == ["topsecret123"]
    headers = {"x-echo": "got 'Bearer topsecret123'", "content-type": "application/json"}
    assert kept(headers, secrets=secrets) == {"x-echo": "got 'Bearer ***'", "content-type": "application/json"}


def test_values_are_one_line_of_text_whatever_they_hold():
    for value, expected in {
        "a\tb": "a\\tb",
        "caf\xc3\xa9": "café",
        "caf\xe9": "café",
        "\x9b31m": "\\x9b31m",
        # Turns the direction of what follows.
        "\u202eabc".encode().decode("latin-1"): "\\u202eabc",
        "\u2028".encode().decode("latin-1"): "\\u2028",
    }.items():
        assert kept({"x": value}) == {"x": expected}, ascii(value)


def test_it_is_bounded_and_says_what_is_left_out():
    many = {f"x-{number}": "v" for number in range(200)}
    found = read(keep(many))
    assert (len(found.headers), found.left_out) == (NAMES_MOST, 200 - NAMES_MOST)
    for filling in ("v", "é", "\t", "\U0001f600"):
        text = keep({f"x-{number}": filling.encode().decode("latin-1") * 3000 for number in range(10)})
        found = read(text)
        assert len(text.encode()) <= BYTES_MOST
        assert found.headers
        assert len(found.headers) + found.left_out == 10
    long = read(keep({"n" * 60_000: "v", "x": "y" * 5000}))
    assert [len(name) for name in long.headers] == [100, 1]
    assert long.headers["n" * 100] == MASK
    assert long.headers["x"].endswith("y…")


def test_no_headers_are_not_the_same_as_none_kept():
    assert keep({}) == ""
    assert read("") == ({}, 0)
