"""Many cases of one test that differ in data alone."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from django.db import transaction
from django.utils import translation

from webtask_scheduler.access import limits
from webtask_scheduler.scheduler import facts

Test = Callable[..., None]


def forget() -> None:
    """Forget what a process remembers from one request to the next."""
    facts.forget()
    limits.forget()
    # A request leaves its language to its thread.
    translation.deactivate()


def each(
    names: str | Sequence[str], cases: Iterable[Any], *, ids: Iterable[Any] | None = None
) -> Callable[[Test], Test]:
    """Return a decorator with which one test passes over all cases, written as for `pytest.mark.parametrize`.

    Each case is a subtest, which fails alone and by its name. Fixtures are made once for all; what a case wrote to the
    database is taken back after it, and what its receiver was sent and what it logged is forgotten before the next.
    Several of these make every combination. A case costs 0.3 ms; a test of its own costs 4 ms, and its fixtures.
    """
    words = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
    rows = []
    for case, name in zip(cases, itertools.repeat(None) if ids is None else ids, strict=ids is not None):
        found = ParameterSet.extract_from(case, force_tuple=len(words) == 1)
        assert len(found.values) == len(words), f"{case!r} is no case of {words}"
        label = name or found.id or "-".join(str(value) for value in found.values)
        # Half a character of a case could not be sent to another process.
        rows.append(
            (str(label).encode(errors="backslashreplace").decode(), dict(zip(words, found.values, strict=True)))
        )
    assert rows, "without cases, nothing is tested"

    def decorate(test: Test) -> Test:
        test, axes = getattr(test, "walk", (test, []))
        axes = [rows, *axes]
        given = {word for axis in axes for word in axis[0][1]}

        @functools.wraps(test)
        def walk(subtests: pytest.Subtests, request: pytest.FixtureRequest, **fixtures: Any) -> None:
            for combination in itertools.product(*axes):
                values = {word: value for _, row in combination for word, value in row.items()}
                with subtests.test("-".join(label for label, _ in combination)[:200]), _taken_back(request.node):
                    _nothing_of_the_case_before(request)
                    test(**fixtures, **values)

        own = [parameter for name, parameter in inspect.signature(test).parameters.items() if name not in given]
        assert len(own) + len(given) == len(inspect.signature(test).parameters), f"not each of {given} is used"
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("subtests", "request")]
        walk.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        walk.walk = (test, axes)  # type: ignore[attr-defined]
        return walk

    return decorate


def _nothing_of_the_case_before(request: pytest.FixtureRequest) -> None:
    """Empty the fixtures that note what happens, where the test or another of its fixtures uses them."""
    forget()
    if "receiver" in request.fixturenames:
        request.getfixturevalue("receiver").calls.clear()
    if "caplog" in request.fixturenames:
        request.getfixturevalue("caplog").clear()


@contextlib.contextmanager
def _taken_back(node: pytest.Item) -> Iterator[None]:
    """Take back what is written to the database, in a test that may."""
    marker = node.get_closest_marker("django_db")
    if marker is None:
        yield
        return
    assert not marker.kwargs.get("transaction"), "what a test with transactions of its own writes stays"
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
