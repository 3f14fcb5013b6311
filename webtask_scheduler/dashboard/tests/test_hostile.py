"""Pages asked for what no link leads to and sent what no browser would: an answer, and never an error of ours."""

import pytest

from webtask_scheduler.scheduler.models import Timer

pytestmark = pytest.mark.django_db

NOBODY = "01a208fa-e8fb-7670-94ef-a8fa0c17a138"
IMPORTS = (
    "[" * 100_000,
    '{"a":' * 5000 + "1" + "}" * 5000,
    "\0",
    '{"web_url": "http://a.example/\\u0000", "seconds": 5}',
    "{}",
    '{"web_url": 5}',
    '"x"',
    "null",
    '{"web_url": "http://a.example/", "seconds": 5, "labels": [1]}',
    "9" * 5000,
    '{"web_url": "http://a.example/", "seconds": ' + "9" * 5000 + "}",
)
LISTS = ("/timers", "/timers/export.csv", "/timers/export.jsonl", "/dead", "/upcoming", "/operations")
QUERIES = (
    "q=%00",
    "name=%00",
    f"id={'f' * 40}",
    "cursor=x",
    "due_from=x",
    "sort=x",
    "status=%00",
    f"label={'a' * 5000}",
)
PATHS = (
    "/dead?host=%00&state=failed&error=x&code=9999999999",
    "/hosts/%00",
    "/upcoming?part=99999",
    "/upcoming?from=x&at=%00",
    "/punctuality?window=%00",
    f"/timers?live=1&ids={','.join(['x'] * 500)}",
    "/timers/new?copy=x",
    f"/timers/new?copy={NOBODY}",
    f"/timers/{NOBODY}/deliveries/99999999999999999999",
    "/settings?x=%00",
)
FORMS = (
    ("/timers/act", {"action": "run", "id": ["x", "\0", NOBODY]}),
    ("/dead/replay", {"host": "x", "state": "failed", "spread": "x", "id": "\0"}),
    ("/settings/keys", {"name": "\0"}),
    ("/settings/secrets", {"hosts": "\0"}),
    ("/settings/display", {"clock": "\0"}),
    ("/timers/new", {"web_url": "http://a.example/\0", "when": "in", "seconds": "1"}),
    ("/timers/new", {"web_url": "x", "test": "1", "labels": "a=" * 100}),
    ("/hosts/a b/stop", {"reason": "\0"}),
)


def test_no_request_is_an_error_of_ours(client):
    answers = [(text[:30], client.post("/import", {"text": text, "zone": "UTC"})) for text in IMPORTS]
    answers += [(path, client.get(path)) for path in (*PATHS, *(f"{at}?{query}" for at in LISTS for query in QUERIES))]
    answers += [(path, client.post(path, given)) for path, given in FORMS]
    assert [(asked, answer.status_code) for asked, answer in answers if answer.status_code >= 500] == []
    assert not Timer.objects.exists()
