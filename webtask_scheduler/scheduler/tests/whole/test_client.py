"""A Python client made from the schema by openapi-python-client, against a real web process."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from uuid import UUID, uuid4

import pytest
from django.test import Client as DjangoClient

from webtask_scheduler.access import keys
from webtask_scheduler.scheduler.models import Attempt, Delivery, State, Timer

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

PACKAGE = "webtask_client"
URL = "http://a.example/hook"


@pytest.fixture(scope="module")
def made(web, tmp_path_factory) -> Iterator[str]:
    """Make the client from the live schema, where it can be imported; return what its maker said."""
    folder = tmp_path_factory.mktemp("client")
    tools = Path(sys.executable).parent
    words = ["generate", "--url", f"http://127.0.0.1:{web.port}/api/schema", "--meta", "none"]
    done = subprocess.run(
        [tools / "openapi-python-client", *words, "--output-path", folder / PACKAGE],
        # It formats what it makes with ruff.
        env=os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield done.stdout + done.stderr
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def operation_of(name: str) -> ModuleType:
    """Return the client's module of an operation, which lies in that of its group."""
    (folder,) = importlib.import_module(f"{PACKAGE}.api").__path__
    (found,) = Path(folder).glob(f"*/v1_scheduler_{name}.py")
    return importlib.import_module(f"{PACKAGE}.api.{found.parent.name}.{found.stem}")


@pytest.fixture(scope="module")
def models(made):
    return importlib.import_module(f"{PACKAGE}.models")


@pytest.fixture
def call(made, web) -> Iterator[Callable]:
    """Return a function that calls an operation by its name and returns the status and what was parsed."""
    client = importlib.import_module(f"{PACKAGE}.client").Client(
        base_url=f"http://127.0.0.1:{web.port}", raise_on_unexpected_status=True
    )

    def call(name, *arguments, **options):
        answer = operation_of(name).sync_detailed(*arguments, client=client, **options)
        return answer.status_code, answer.parsed

    with client:
        yield call


def test_it_is_made_without_a_warning_and_has_every_operation(made):
    assert "warning" not in made.lower()
    assert "error" not in made.lower()
    document = DjangoClient().get("/api/schema?format=json").json()
    for item in document["paths"].values():
        for operation in item.values():
            assert operation_of(operation["operationId"].removeprefix("v1_scheduler_"))


def test_a_timer_is_created_read_edited_and_cancelled(call, models):
    new = models.NewTimer(
        web_url=URL,
        cron="0 9 * * MON-FRI",
        timezone="Europe/Berlin",
        name="report",
        method=models.MethodEnum.PUT,
        body={"order": 17, "lines": [None, "é"]},
        headers=models.NewTimerHeaders.from_dict({"X-Shop": "north"}),
        labels=models.NewTimerLabels.from_dict({"team": "billing"}),
        retry=models.Retry(max_attempts=8, backoff=models.BackoffEnum.FIXED, min_seconds=1.5),
        success_statuses=[204, models.NewTimerSuccessStatusesItemType1("3xx")],
    )
    status, timer = call("timer_create", body=new, idempotency_key="key")
    assert (status, type(timer)) == (HTTPStatus.CREATED, models.Timer)
    assert isinstance(timer.task_id, UUID)
    assert timer.status is models.TimerStatus.SCHEDULED
    assert timer.due_at > datetime.now(UTC)
    assert (timer.cron, timer.name, timer.occurrence, timer.finished_at) == (new.cron, "report", 1, None)
    assert timer.headers.to_dict() == {"X-Shop": "***"}
    assert timer.retry.to_dict() == new.retry.to_dict()
    assert timer.success_statuses == [204, "3xx"]
    assert timer.body == new.body
    assert call("timer_create", body=new, idempotency_key="key") == (HTTPStatus.CREATED, timer)
    status, seen = call("timer_retrieve", timer.task_id)
    # A second may have passed meanwhile.
    seen.time_left_in_seconds = timer.time_left_in_seconds
    assert (status, seen) == (HTTPStatus.OK, timer)

    edit = models.PatchedEdit(every="PT10M", name="poll", labels=None)
    status, edited = call("timer_partial_update", timer.task_id, body=edit)
    assert (status, edited.every, edited.name) == (HTTPStatus.OK, "PT10M", "poll")
    assert not edited.cron
    assert not edited.labels
    assert edited.headers == timer.headers

    for expected in ("paused", "scheduled"):
        status, changed = call("timer_pause" if expected == "paused" else "timer_resume", timer.task_id)
        assert (status, changed.status) == (HTTPStatus.OK, expected)
    status, gone = call("timer_destroy", timer.task_id)
    assert (status, gone.status) == (HTTPStatus.OK, models.TimerStatus.CANCELLED)
    status, problem = call("timer_pause", timer.task_id)
    assert (status, type(problem), problem.status) == (HTTPStatus.CONFLICT, models.Problem, 409)


def test_a_client_with_a_key_acts_for_its_owner(made, web, call, models, django_user_model):
    owner = django_user_model.objects.create_user("ann@example.com")
    key = keys.make(name="client", owner_id=owner.pk, scopes=["timers:read", "timers:write"]).text
    assert call("timer_create", body=models.NewTimer(web_url=URL, hours=1))[0] == HTTPStatus.CREATED
    client = importlib.import_module(f"{PACKAGE}.client")

    def ask(name, token, **options):
        with client.AuthenticatedClient(base_url=f"http://127.0.0.1:{web.port}", token=token) as found:
            return operation_of(name).sync_detailed(client=found, **options)

    answer = ask("timer_create", key, body=models.NewTimer(web_url=URL, hours=1))
    assert answer.status_code == HTTPStatus.CREATED
    assert Timer.objects.get(owner=owner).pk == answer.parsed.task_id
    assert [timer.task_id for timer in ask("timer_list", key).parsed.timers] == [answer.parsed.task_id]
    assert ask("api_key_list", key).status_code == HTTPStatus.FORBIDDEN
    assert ask("timer_list", key[:-1] + ("a" if key[-1] != "a" else "b")).status_code == HTTPStatus.UNAUTHORIZED


def test_a_timer_is_created_by_a_form(call, models):
    for form in (models.TimerForm, models.TimerParts):
        status, timer = call("timer_create", body=form(web_url=URL, hours=1, name="by form"))
        assert (status, timer.name) == (HTTPStatus.CREATED, "by form")


def test_a_list_is_read_page_by_page(call, models):
    made = [call("timer_create", body=models.NewTimer(web_url=URL, seconds=60))[1].task_id for _ in range(5)]
    call("timer_create", body=models.NewTimer(web_url="http://b.example", seconds=60))
    found, cursor = [], ""
    while cursor is not None:
        status, page = call("timer_list", limit=2, cursor=cursor, host="a.example")
        assert (status, type(page)) == (HTTPStatus.OK, models.Timers)
        found += [timer.task_id for timer in page.timers]
        cursor = page.next_
    assert found == made[::-1]
    wanted = [models.V1SchedulerTimerListStatusItem.SCHEDULED, models.V1SchedulerTimerListStatusItem.FAILED]
    status, page = call("timer_list", status=wanted, due_from=datetime(2026, 1, 1, tzinfo=UTC), recurring=False)
    assert len(page.timers) == 6


def test_a_batch_is_stored_all_or_in_part(call, models):
    good, bad = models.NewTimer(web_url=URL, seconds=1), models.NewTimer(web_url="ftp://a", delay="PT1S")
    status, stored = call("timer_batch_create", body=models.Batch(timers=[good, good]))
    assert (status, type(stored), len(stored.timers)) == (HTTPStatus.CREATED, models.BatchStored, 2)
    status, results = call("timer_batch_create", body=models.Batch(timers=[good, bad], partial=True))
    assert (status, type(results)) == (HTTPStatus.OK, models.BatchResults)
    first, second = results.results
    assert first.timer.web_url == URL
    assert second.problem.errors[0].field == "web_url"
    status, problem = call("timer_batch_create", body=models.Batch(timers=[bad]))
    assert (status, problem.errors[0].field) == (HTTPStatus.BAD_REQUEST, "timers.0.web_url")


def test_a_schedule_is_previewed(call, models):
    schedule = models.Preview(
        cron="0 9 * * *", timezone="Europe/Berlin", after=datetime(2026, 3, 27, 12, tzinfo=UTC), count=2
    )
    status, shown = call("timer_preview", body=schedule)
    assert (status, shown.more) == (HTTPStatus.OK, True)
    assert [moment.at.hour for moment in shown.moments] == [8, 7]
    assert "forward" in shown.moments[1].note


def test_a_bulk_operation_is_begun_and_looked_at(call, models):
    bulk = models.Bulk(
        action=models.ActionEnum.CANCEL,
        filter_=models.Filter(label="team=billing", status=[models.TimerStatus.SCHEDULED]),
        dry_run=True,
    )
    status, begun = call("timer_bulk_create", body=bulk)
    assert (status, type(begun), begun.dry_run) == (HTTPStatus.ACCEPTED, models.BulkStatus, True)
    assert call("timer_bulk_retrieve", begun.bulk_id) == (HTTPStatus.OK, begun)


def test_deliveries_and_attempts_are_read_and_a_dead_letter_is_replayed(call, models):
    _, timer = call("timer_create", body=models.NewTimer(web_url=URL, seconds=0))
    status, extra = call("timer_run", timer.task_id)
    assert (status, type(extra), extra.extra) == (HTTPStatus.CREATED, models.Delivery, True)
    delivery = Delivery.objects.promised().get()
    Attempt.objects.create(
        delivery=delivery,
        number=1,
        meant_for=delivery.due_at,
        started_at=delivery.due_at,
        duration_ms=3,
        status_code=500,
        error="status",
        message="It answered 500.",
        excerpt="oh",
    )
    past = delivery.due_at
    Delivery.objects.filter(pk=delivery.pk).update(state=State.FAILED, attempts=1, started_at=past, finished_at=past)
    status, page = call("timer_attempts_list", timer.task_id)
    (attempt,) = page.attempts
    assert (status, attempt.status_code, attempt.excerpt) == (HTTPStatus.OK, 500, "oh")
    assert attempt.error is models.ErrorKind.STATUS
    status, page = call("timer_deliveries_list", timer.task_id, limit=1)
    assert (status, page.deliveries, type(page.next_)) == (HTTPStatus.OK, [extra], str)
    status, page = call("timer_deliveries_list", timer.task_id, limit=1, cursor=page.next_)
    assert (page.deliveries[0].delivery_id, page.deliveries[0].status, page.next_) == (delivery.pk, "failed", None)
    status, replayed = call("timer_replay", timer.task_id, body=models.Replay(delivery_id=delivery.pk))
    assert (status, replayed.status) == (HTTPStatus.OK, models.TimerStatus.SCHEDULED)
    assert replayed.replayed_at > timer.created_at


def test_signing_secrets_come_and_go(call, models):
    status, secret = call("signing_secret_create", body=models.NewSecret())
    assert (status, type(secret)) == (HTTPStatus.CREATED, models.MadeSecret)
    status, known = call("signing_secret_list")
    assert [(one.id, one.hint) for one in known.secrets] == [(secret.id, secret.hint)]
    assert call("signing_secret_destroy", secret.id) == (HTTPStatus.NO_CONTENT, None)


def test_errors_are_problem_details(call, models):
    status, problem = call("timer_create", body=models.NewTimer(web_url=URL))
    assert (status, type(problem)) == (HTTPStatus.BAD_REQUEST, models.Problem)
    assert (problem.type_, problem.title, problem.status) == ("about:blank", "Bad Request", 400)
    assert [error.field for error in problem.errors] == ["seconds"]
    status, problem = call("timer_retrieve", uuid4())
    assert (status, problem.title) == (HTTPStatus.NOT_FOUND, "Not Found")
    assert not problem.errors
