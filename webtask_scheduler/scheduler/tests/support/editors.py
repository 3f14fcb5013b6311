"""Clients that edit, pause, resume, run, replay and cancel timers at random, and the account of what was answered.

Several work side by side on the same timers, each of which recurs every second or two. What each asks for depends on
the seed; how it interleaves does not. The answers are compared with what the database says of each delivery, so no wait
is guessed: a call that was in flight when a pause was answered was started before that, by the same clock.
"""

import contextlib
import http.client
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CLIENTS = 12
TIMERS = 40
# Timers fall into so many groups by their URLs; the last one's are paused and resumed by bulk operations as well.
GROUPS = 4
BULK_GROUP = GROUPS - 1
# What may begin the calls of a paused timer again.
ENABLING = ("resume", "replay")
# How long after it was sent a request whose answer never came may still take effect: the longest a statement may run.
UNANSWERED_SECONDS = 30.0
REQUEST_SECONDS = 20.0

# What a client does next, with its weight.
ACTIONS = {"pause": 24, "resume": 24, "edit": 24, "run": 10, "replay": 10, "delete": 3, "get": 4, "bulk": 1}

Rows = Callable[..., list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Edited:
    """A timer that the clients know of."""

    timer_id: str
    group: int


@dataclass(frozen=True)
class Asked:
    """One request about a timer; moments by the machine's clock, no status where no answer came."""

    timer_id: str
    action: str
    began: float
    ended: float
    status: int | None


class Editors:
    """`url` gives the receiver's URL of a path; paths with `fails` in them are to answer 500."""

    def __init__(self, port: int, url: Callable[[str], str], *, seed: int, timers: int = TIMERS) -> None:
        self.asked: list[Asked] = []
        # By what was asked and the status; "none" where no answer came.
        self.answers: Counter[str] = Counter()
        # What went wrong, in the server's own words.
        self.failures: list[str] = []
        self._port = port
        self._url = url
        self._seed = seed
        self._number = timers
        self._timers: list[Edited] = []
        self._lock = threading.Lock()
        self._made = 0
        self._closing = threading.Event()

    @property
    def prefix(self) -> str:
        """Return what the URLs of all timers of these clients begin with."""
        return self._url("/edited/")

    def make(self) -> None:
        """Make the timers."""
        chance = random.Random(self._seed)
        for _ in range(self._number):
            self._create(chance)

    @contextlib.contextmanager
    def editing(self, *, clients: int = CLIENTS) -> Iterator[None]:
        """Edit at random while the block runs."""
        threads = [
            threading.Thread(target=self._go_on, args=[number], name=f"editor {number}", daemon=True)
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._closing.set()
            for thread in threads:
                thread.join()

    def in_group(self, group: int) -> list[str]:
        """Return the timers of a group that have not been cancelled."""
        with self._lock:
            return [timer.timer_id for timer in self._timers if timer.group == group]

    def cancel_all(self, rows: Rows) -> None:
        """Cancel every timer that was made, answered or not."""
        for (timer_id,) in rows("SELECT id::text FROM scheduler_timer WHERE web_url LIKE %s", self.prefix + "%"):
            while self._ask("DELETE", timer_id, "", None, action="delete") not in (200, 404):
                time.sleep(0.5)

    # The clients

    def _go_on(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while not self._closing.wait(chance.uniform(0, 0.05)):
            (action,) = chance.choices(list(ACTIONS), list(ACTIONS.values()))
            with self._lock:
                timer = chance.choice(self._timers) if self._timers else None
            if timer is None:
                self._create(chance)
            elif action == "bulk":
                self._bulk(chance)
            elif action == "edit":
                self._ask("PATCH", timer.timer_id, "", self._patch(timer, chance), action=action)
            elif action == "get":
                self._ask("GET", timer.timer_id, "", None, action=action)
            elif action == "delete":
                with self._lock, contextlib.suppress(ValueError):
                    self._timers.remove(timer)
                self._ask("DELETE", timer.timer_id, "", None, action=action)
                self._create(chance)
            else:
                self._ask("POST", timer.timer_id, f"/{action}", {}, action=action)

    def _path(self, group: int, chance: random.Random) -> str:
        with self._lock:
            self._made += 1
            return f"/edited/{group}/{self._made}{'/fails' if chance.random() < 0.25 else ''}"

    def _create(self, chance: random.Random) -> None:
        group = chance.randrange(GROUPS)
        body = {
            "every": chance.choice(["PT1S", "PT1S", "PT2S"]),
            "web_url": self._url(self._path(group, chance)),
            "labels": {"group": f"{self._seed}-{group}"},
            # So that what fails is a dead letter at once.
            "retry": {"max_attempts": 1},
        }
        status, answer = self._send("POST", "/timer", body, action="create")
        if status == 201:
            with self._lock:
                self._timers.append(Edited(answer["task_id"], group))

    def _patch(self, timer: Edited, chance: random.Random) -> dict[str, Any]:
        return chance.choice(
            [
                {"name": f"name {chance.randrange(100)}"},
                {"metadata": {"number": chance.randrange(100)}},
                {"every": chance.choice(["PT1S", "PT2S"])},
                {"cron": "* * * * *"} if chance.random() < 0.1 else {"every": "PT1S"},
                {"web_url": self._url(self._path(timer.group, chance))},
            ]
        )

    def _bulk(self, chance: random.Random) -> None:
        action = chance.choice(["pause", "resume", "resume", "replay"])
        body = {"action": action, "filter": {"label": f"group={self._seed}-{BULK_GROUP}"}}
        self._send("POST", "/timer/bulk", body, action="bulk")

    def _ask(self, method: str, timer_id: str, more: str, body: Any, *, action: str) -> int | None:
        began = time.time()
        status, _ = self._send(method, f"/timer/{timer_id}{more}", body, action=action)
        ended = time.time() if status else began + UNANSWERED_SECONDS
        self.asked.append(Asked(timer_id, action, began, ended, status))
        return status

    def _send(self, method: str, path: str, body: Any, *, action: str) -> tuple[int | None, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            status, text = response.status, response.read()
            if status >= 500:
                self.failures.append(f"{method} {path}: {status} {text[:200]!r}")
            answer: Any = json.loads(text)
        except (OSError, http.client.HTTPException, ValueError):
            status, answer = None, None
        finally:
            connection.close()
        with self._lock:
            self.answers[f"{action} {status or 'none'}"] += 1
        return status, answer


# The account


def broken(rows: Rows, editors: Editors, *, groups: int = GROUPS) -> list[str]:
    """Return what no moment may show: one statement sees one state of all tables.

    `groups` leaves out the last ones, whose rows somebody writes by halves.
    """
    mine = [f"{editors.prefix}{group}/%" for group in range(groups)]
    found = rows(_BROKEN, mine)
    return [f"timer {timer_id}: {what}" for timer_id, what in found]


# A retry of a call that was in flight waits until the claim parks it.
_BROKEN = """
SELECT timer.id::text,
       CASE WHEN latest.id IS NULL THEN 'its task is enabled and nothing is promised'
            ELSE 'its task is disabled and its delivery is ' || latest.state END
  FROM scheduler_timer timer JOIN django_celery_beat_periodictask task ON task.id = timer.periodic_task_id
  LEFT JOIN scheduler_delivery latest ON latest.timer_id = timer.id AND NOT latest.extra
        AND latest.finished_at IS NULL AND latest.cancel_requested_at IS NULL
 WHERE timer.web_url LIKE ANY(%s) AND (timer.cron <> '' OR timer.every_seconds IS NOT NULL)
   AND (task.enabled AND latest.id IS NULL
        OR NOT task.enabled AND latest.started_at IS NULL AND latest.state IN ('scheduled', 'claimed', 'running'))
"""


def called_while_paused(rows: Rows, editors: Editors, *, groups: int = GROUPS - 1) -> tuple[int, list[str]]:
    """Return how many pauses could be judged, and the calls that were started while a pause was in force.

    One is in force from its answer until the next request that may have resumed the timer; one that such a request
    overlaps cannot be judged. Timers that bulk operations resume are left out.
    """
    mine = [f"{editors.prefix}{group}/%" for group in range(groups)]
    started: dict[str, list[tuple[float, str]]] = {}
    for timer_id, delivery_id, at in rows(_STARTED, mine):
        started.setdefault(timer_id, []).append((at, delivery_id))
    asked: dict[str, list[Asked]] = {}
    for one in editors.asked:
        asked.setdefault(one.timer_id, []).append(one)
    judged, wrong = 0, []
    for timer_id, calls in started.items():
        mine_asked = asked.get(timer_id, [])
        enabling = [one for one in mine_asked if one.action in ENABLING]
        for pause in mine_asked:
            if pause.action != "pause" or pause.status != 200:
                continue
            if any(one.began < pause.ended and one.ended > pause.began for one in enabling):
                continue
            judged += 1
            until = min((one.began for one in enabling if one.began >= pause.ended), default=math.inf)
            wrong += [
                f"timer {timer_id}: delivery {delivery_id} was started {at - pause.ended:.3f} s after its pause"
                for at, delivery_id in calls
                if pause.ended < at < until
            ]
    return judged, wrong


# A replay and an extra delivery are asked for by themselves.
_STARTED = """
SELECT timer.id::text, delivery.id::text, extract(epoch FROM delivery.started_at)::float8
  FROM scheduler_delivery delivery JOIN scheduler_timer timer ON timer.id = delivery.timer_id
 WHERE timer.web_url LIKE ANY(%s) AND NOT delivery.extra AND delivery.replayed_at IS NULL
   AND delivery.started_at IS NOT NULL
"""


def described(rows: Rows, timer_id: str) -> tuple[Any, ...]:
    """Return what the database says of a timer, for the one who reads the failure."""
    (row,) = rows(
        "SELECT timer.id::text, task.enabled, task.last_run_at, latest.state, latest.due_at, latest.next_attempt_at"
        "  FROM scheduler_timer timer JOIN django_celery_beat_periodictask task ON task.id = timer.periodic_task_id"
        "  LEFT JOIN LATERAL (SELECT * FROM scheduler_delivery WHERE timer_id = timer.id AND NOT extra"
        "    ORDER BY number DESC LIMIT 1) latest ON true WHERE timer.id = %s",
        timer_id,
    )
    return row


def bulks_ended(rows: Rows, ids: Sequence[str] | None = None) -> bool:
    """Return whether no bulk operation, or none of these, is under way: one may pause timers long after its request."""
    return not rows(
        "SELECT id FROM scheduler_bulkoperation"
        " WHERE finished_at IS NULL AND (%s::uuid[] IS NULL OR id = ANY(%s::uuid[])) LIMIT 1",
        ids,
        ids,
    )


def enabled(rows: Rows, editors: Editors) -> set[str]:
    """Return the timers that go on."""
    found = rows(
        "SELECT timer.id::text FROM scheduler_timer timer"
        " JOIN django_celery_beat_periodictask task ON task.id = timer.periodic_task_id"
        " WHERE timer.web_url LIKE %s AND task.enabled AND timer.every_seconds IS NOT NULL",
        editors.prefix + "%",
    )
    return {row[0] for row in found}
