"""Fixtures that many tests share."""

import gc
import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test import TransactionTestCase
from hypothesis import strategies
from pytest_django.plugin import blocking_manager_key
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from scripts import servers
from webtask_scheduler.access import limits
from webtask_scheduler.dashboard import overview, status
from webtask_scheduler.scheduler import services
from webtask_scheduler.scheduler.models import Delivery, Timer
from webtask_scheduler.scheduler.outgoing import connections
from webtask_scheduler.scheduler.tests.support.cases import forget
from webtask_scheduler.scheduler.tests.support.receiver import Receiver
from webtask_scheduler.scheduler.tests.support.service import Service, running

# The name of the database that the tests' names are made of.
NAME = pytest.StashKey[str]()

# One database is migrated for all processes of tests side by side


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell such a process, before it starts, which database it copies."""
    node.workerinput["template"] = f"test_{connection.settings_dict['NAME']}"


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    """Migrate the database that those processes copy, while they start and read the tests."""
    yield
    if session.config.pluginmanager.hasplugin("dsession"):
        with session.config.stash[blocking_manager_key].unblock():
            session.config.stash[NAME] = connection.settings_dict["NAME"]
            connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
            # A database with a connection cannot be copied.
            connection.close()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if NAME in session.config.stash:
        with session.config.stash[blocking_manager_key].unblock():
            connection.creation.destroy_test_db(session.config.stash[NAME], verbosity=0)


def pytest_collection_finish() -> None:
    """Leave what is loaded by now to no collection of garbage: 400,000 objects, which would be looked through again
    and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings: None,  # noqa: ARG001 - this adds to it
    request: pytest.FixtureRequest,
) -> None:
    """Have the database of this process copied from the one that is migrated."""
    if template := getattr(request.config, "workerinput", {}).get("template"):
        connection.settings_dict["TEST"]["TEMPLATE"] = template


class ForeignAddressError(RuntimeError):
    """A test connects to another machine."""


@pytest.fixture(scope="session", autouse=True)
def _this_machine_only() -> Iterator[None]:
    """Refuse connections to other machines; the broker alone may be on one, as it is under Docker."""
    broker = urlsplit(settings.REDIS_URL).hostname
    brokers = {found[4][0] for found in socket.getaddrinfo(broker, None)} if broker else set()

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def check(sock: socket.socket, address: Any) -> Any:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                host = address[0].partition("%")[0]
                if host not in brokers | {"localhost"} and not ipaddress.ip_address(host).is_loopback:
                    raise ForeignAddressError(f"A test connects to {address}, which is not this machine.")
            return connect(sock, address)

        return check

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _constants_of_the_code(request: pytest.FixtureRequest) -> None:
    """Have Hypothesis read the code for constants, which takes seconds the first time.

    In the middle of a test, a transaction would be idle meanwhile, and PostgreSQL ends one that is idle for 5 seconds.
    """
    if any(hypothesis.is_hypothesis_test(getattr(item, "obj", None)) for item in request.session.items):
        hypothesis.find(strategies.text(), lambda _: True)


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have each client read one certificate where it is given none: to read those of all authorities takes 20 ms."""
    end = "-----END CERTIFICATE-----\n"
    bundle = tmp_path_factory.mktemp("authorities") / "one.pem"
    bundle.write_text(Path(DEFAULT_CA_BUNDLE_PATH).read_text().partition(end)[0] + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "DEFAULT_CA_BUNDLE_PATH", str(bundle))
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_flush() -> Iterator[None]:
    """Have a test with transactions of its own end by deleting the rows that there are.

    Django truncates every table and makes all permissions anew, which takes 0.1 s. They are the same for all tests.
    """
    kept = {"auth_permission", "django_content_type"}

    def delete_rows(_: TransactionTestCase) -> None:
        tables = [table for table in connection.introspection.django_table_names() if table not in kept]
        filled = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT FROM {table})" for table in tables)  # noqa: S608
        # In one transaction, at the end of which foreign keys are checked.
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(filled)
            for (table,) in cursor.fetchall():
                cursor.execute(f"DELETE FROM {table}")  # noqa: S608

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", delete_rows)
        yield


@pytest.fixture(autouse=True)
def _nothing_of_the_test_before() -> None:
    forget()
    overview.forget()
    status.forget()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def make_timer() -> Callable[..., Timer]:
    """Return a function that stores a timer the way the API does; `delay_seconds` may be negative."""

    def make(web_url: str = "http://127.0.0.1:9/", **fields: Any) -> Timer:
        if not fields.keys() & {"delay_seconds", "due_at"}:
            fields["delay_seconds"] = 60
        (stored,) = services.schedule([services.NewTimer(web_url=web_url, **fields)])
        return Timer.objects.get(pk=stored.timer_id)

    return make


@pytest.fixture
def delivery_of() -> Callable[[Timer], Delivery]:
    """Return a function that reads a timer's latest promised delivery."""

    def read(timer: Timer) -> Delivery:
        return Delivery.objects.filter(timer=timer).latest_promised()[0]

    return read


@pytest.fixture
def sql() -> Callable[..., list[tuple[Any, ...]]]:
    """Return a function that runs a statement and returns its rows."""

    def run(statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def user() -> Any:
    return get_user_model().objects.create_user("me@example.com", "secret")


@pytest.fixture
def empty_store(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The Redis that holds limits, empty, with all of a test's patience."""
    # A busy machine is not to be taken for an absent Redis.
    monkeypatch.setattr(limits, "TIMEOUT_SECONDS", 10.0)
    limits.forget()
    with redis.Redis.from_url(settings.REDIS_URL) as broker:
        broker.flushdb()
        yield broker
        broker.flushdb()
    limits.forget()


@pytest.fixture
def full_redis(settings: Any, tmp_path: Path) -> Iterator[redis.Redis]:
    """A Redis of the test's own that takes nothing: the others share one, and would have a full one too."""
    with servers.Redis(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as broker:
        broker.config_set("maxmemory", 1)
        settings.REDIS_URL = server.url
        limits.forget()
        yield broker
    limits.forget()


@pytest.fixture(scope="module")
def web(django_db_setup: None) -> Iterator[Service]:  # noqa: ARG001 - it has its tables
    """A real web process on the test database."""
    with running("web") as service:
        yield service
