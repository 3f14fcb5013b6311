"""What tests send to the API through Django's client, and what they look at."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import Model
from django_celery_beat.models import ClockedSchedule, PeriodicTask

from webtask_scheduler.access import keys
from webtask_scheduler.access.models import Scope
from webtask_scheduler.scheduler.delivery.call import call_url
from webtask_scheduler.scheduler.models import (
    TASK_NAME,
    BulkOperation,
    Delivery,
    IdempotencyKey,
    SigningSecret,
    Timer,
    TimerLabel,
)
from webtask_scheduler.scheduler.outgoing.client import Client
from webtask_scheduler.scheduler.queue.attempts import record_outcomes
from webtask_scheduler.scheduler.tests.support.acting import begin
from webtask_scheduler.scheduler.tests.support.receiver import EGRESS, Call, Receiver

URL = "http://a.example/hook"
JSON = "application/json"
# Everything that a timer may say beside its moment.
GIVEN = {
    "name": "order 17",
    "labels": {"team": "billing", "a/b.c_d-e": "", "k" * 63: "v" * 63},
    "metadata": {"b": [1, 2.5, None, True, {"z": "ü\u2028"}], "a": "\\u0000"},
    "method": "PUT",
    "headers": {"X-Shop": "north", "authorization": "Bearer x"},
    "body": {"z": 1, "a": [1, 2.5, 12345678901234567890123456789012345678901234567890], "ü": "\\u0000 \x7f"},
    "content_type": "application/vnd.shop+json; charset=utf-8",
    "timeout_seconds": 2.5,
    "follow_redirects": True,
    "success_statuses": [200, "3xx"],
    "retry": {"max_attempts": 3, "backoff": "fixed", "min_seconds": 7},
    "on_missed": "skip",
    "max_lateness": "PT10M",
    "callback_url": "http://a.example/done",
    "failure_callback_url": "http://a.example/failed",
}


# As it is shown.
SHOWN = GIVEN | {"headers": dict.fromkeys(GIVEN["headers"], "***")}  # type: ignore[call-overload]  # of texts


def send(client: Any, method: str, path: str, body: Any = None, *, content_type: str = JSON, **headers: str) -> Any:
    """Send a request; bytes and text as they are, anything else as JSON."""
    raw = body if isinstance(body, bytes | str) else b"" if body is None else json.dumps(body)
    return client.generic(method, path, raw, content_type, headers=headers)


def key_of(user: Any, *scopes: str, **more: Any) -> str:
    """Return a new API key of a user, with all scopes if none is named."""
    return keys.make(name=f"of {user}", owner_id=user.pk, scopes=scopes or Scope.values, **more).text


def bearer(user: Any, *scopes: str) -> dict[str, str]:
    """Return the headers of a request with a new API key of a user."""
    return {"Authorization": f"Bearer {key_of(user, *scopes)}"}


def post(client: Any, body: Any, path: str = "/timer", **more: Any) -> Any:
    return send(client, "POST", path, body, **more)


def create(client: Any, **fields: Any) -> Any:
    """Create a timer, in a minute if nothing else is said, and return the answer's body."""
    when = {"hours", "minutes", "seconds", "delay", "due_at", "cron", "every"}
    answer = post(client, {"web_url": URL} | ({} if fields.keys() & when else {"seconds": 60}) | fields)
    assert answer.status_code == 201, answer.content
    return answer.json()


def path(timer: Mapping[str, Any], more: str = "") -> str:
    return f"/timer/{timer['task_id']}{more}"


def fields_of(answer: Any, status: int = 400) -> list[str]:
    """Return the fields that a problem names."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    return sorted(error["field"] for error in answer.json()["errors"])


def stored() -> list[int]:
    """Count the rows that creating, in any way, writes."""
    models = (ClockedSchedule, Timer, Delivery, TimerLabel, SigningSecret, BulkOperation, IdempotencyKey)
    counts = [f"(SELECT count(*) FROM {model._meta.db_table})" for model in models]
    counts.append(f"(SELECT count(*) FROM {PeriodicTask._meta.db_table} WHERE task = %s)")
    with connection.cursor() as cursor:
        # In one statement: it is asked for a thousand times.
        cursor.execute(f"SELECT {', '.join(counts)}", [TASK_NAME])
        return list(cursor.fetchone())


def rows_of(*models: type[Model]) -> list[list[str]]:
    """Return every row of these tables as PostgreSQL writes it."""
    tables = [f"ARRAY(SELECT t::text FROM {model._meta.db_table} t ORDER BY id)" for model in models]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(tables)}")
        return list(cursor.fetchone())


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def call_all(receiver: Receiver) -> list[Call]:
    """Do what beat and a worker do for all that is due, the calls included; return what arrived."""
    before = len(receiver.calls)
    client = Client(callers=1, user_agent="test", egress=EGRESS)
    batch = begin()
    record_outcomes([call_url(call, client=client, timeout_seconds=5) for call in batch.started])
    return receiver.calls[before:]
