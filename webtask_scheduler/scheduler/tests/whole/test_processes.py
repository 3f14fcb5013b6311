"""Acceptance: real web, worker and beat processes, a real receiver, and what happens when one is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django_celery_beat.models import ClockedSchedule, IntervalSchedule, PeriodicTask, PeriodicTasks

from webtask_scheduler.scheduler import facts, services
from webtask_scheduler.scheduler.models import TASK_NAME, Attempt, ClockTimestamp, Delivery, State, Timer, Worker
from webtask_scheduler.scheduler.queue import leases
from webtask_scheduler.scheduler.tests.support.service import CHECKOUT, database_url, running
from webtask_scheduler.scheduler.tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

# What a crash may cost on top of the lease that it leaves behind: a process that starts on a busy machine among it.
RECOVERY_SECONDS = 25.0


def due_at(timer_id):
    return Delivery.objects.filter(timer=timer_id).latest_promised()[0].due_at.timestamp()


def test_timers_made_by_http_are_called_once_on_time_and_never_early(receiver):
    with running("web", "worker", "beat") as service:
        wait_until(lambda: service.get("/readyz")[0] == 200)
        ids = {}
        for number in range(30):
            status, body = service.post({"seconds": 1 + number % 3, "web_url": receiver.url(f"/{number}")})
            assert status == 201
            ids[f"/{number}"] = body["task_id"]
        calls = receiver.wait_for(30)
        wait_until(lambda: Delivery.objects.filter(state=State.SUCCEEDED).count() == 30)
        # No second call comes.
        time.sleep(1)
        assert len(receiver.calls) == 30
        for call in calls:
            late = call.at - due_at(ids[call.path])
            assert 0 <= late <= 10, f"{call.path} was {late:.3f} s late"
            assert call.json["task_id"] == ids[call.path]
        status, body = service.get(f"/timer/{ids['/0']}")
        assert (status, body["status"], body["time_left_in_seconds"]) == (200, "succeeded", 0)
        assert [(a["number"], a["status_code"], a["error"]) for a in body["attempts"]] == [(1, 200, "")]
        # An orderly end within the supervisor's patience.
        assert service.stop("beat") == 0
        assert service.stop("worker") == 0


def test_receiver_that_fails_at_first_is_called_again(receiver):
    with running("web", "worker", "beat") as service:
        _, body = service.post({"seconds": 0, "web_url": receiver.url("/flaky/1")})
        first, second = receiver.wait_for(2)
        assert 4 <= second.at - first.at <= 30
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert (first.json["attempt"], second.json["attempt"]) == (1, 2)
        wait_until(lambda: service.get(f"/timer/{body['task_id']}")[1]["status"] == "succeeded")
        # One that waits for long is tried at once where a person asks for it.
        retry = {"min_seconds": 3600}
        _, body = service.post({"seconds": 0, "web_url": receiver.url("/flaky/2"), "retry": retry})
        receiver.wait_for(3)
        wait_until(lambda: len(service.get(f"/timer/{body['task_id']}")[1]["attempts"]) == 1)
        asked_at = time.time()
        assert service.post({}, f"/timer/{body['task_id']}/try-now")[0] == 200
        assert receiver.wait_for(4)[3].at - asked_at <= 30


def test_worker_killed_in_the_middle_of_a_call(receiver, make_timer):
    with running("worker", "beat") as service:
        make_timer(receiver.url("/sleep/60"), delay_seconds=0)
        receiver.wait_for(1)
        killed_at = time.time()
        service.kill("worker")
        service.start("worker", wait=False)
        _, second = receiver.wait_for(2, seconds=leases.RUNNING_LEASE_SECONDS + RECOVERY_SECONDS)
        assert second.at - killed_at <= leases.RUNNING_LEASE_SECONDS + RECOVERY_SECONDS
        assert second.json["attempt"] == 2
        assert [attempt.error for attempt in Attempt.objects.all()] == ["lost"]


def test_beat_killed_between_claim_and_publish(receiver, make_timer):
    with running("worker", "beat") as service:
        timer = make_timer(receiver.url(), delay_seconds=3)
        # Claimed a second ahead and held in memory until its moment.
        wait_until(lambda: Delivery.objects.get(timer=timer).state == State.CLAIMED)
        service.kill("beat")
        killed_at = time.time()
        service.start("beat", wait=False)
        (call,) = receiver.wait_for(1, seconds=leases.CLAIMED_LEASE_SECONDS + RECOVERY_SECONDS)
        assert call.at - killed_at <= leases.CLAIMED_LEASE_SECONDS + RECOVERY_SECONDS
        wait_until(lambda: Delivery.objects.get(timer=timer).state == State.SUCCEEDED)
        assert Attempt.objects.count() == len(receiver.calls) == 1


def test_redis_emptied_with_a_message_in_flight(receiver, make_timer):
    with running("beat") as service:
        make_timer(receiver.url(), delay_seconds=0)
        wait_until(lambda: service.broker.llen("celery") > 0)
        service.broker.flushdb()
        emptied_at = time.time()
        service.start("worker", wait=False)
        (call,) = receiver.wait_for(1, seconds=leases.CLAIMED_LEASE_SECONDS + RECOVERY_SECONDS)
        assert call.at - emptied_at <= leases.CLAIMED_LEASE_SECONDS + RECOVERY_SECONDS


def test_stopped_worker_that_wakes_up_late_writes_nothing(receiver, make_timer):
    with running("worker", "beat") as service:
        timer = make_timer(receiver.url("/sleep/3"), delay_seconds=0)
        receiver.wait_for(1)
        service.signal("worker", signal.SIGSTOP)
        service.start("worker-2")
        receiver.wait_for(2, seconds=leases.RUNNING_LEASE_SECONDS + RECOVERY_SECONDS)
        wait_until(lambda: Delivery.objects.get(timer=timer).state == State.SUCCEEDED)
        service.signal("worker", signal.SIGCONT)
        wait_until(lambda: "outcomes_not_recorded" in service.log("worker"))
        assert [(a.number, a.error) for a in Attempt.objects.order_by("number")] == [(1, "lost"), (2, "")]


def test_timer_whose_moment_passed_while_nothing_ran_is_called_at_once_and_once(receiver, make_timer):
    timer = make_timer(receiver.url(), delay_seconds=-30)
    with running("worker", "beat") as service:
        receiver.wait_for(1)
        wait_until(lambda: Delivery.objects.get(timer=timer).state == State.SUCCEEDED)
        # No second call comes.
        time.sleep(1)
        assert len(receiver.calls) == 1
        assert service.stop("beat") == 0


def test_worker_told_to_end_lets_short_calls_land_and_gives_back_long_ones(receiver, make_timer):
    with running("worker", "beat") as service:
        short = make_timer(receiver.url("/sleep/2"), delay_seconds=0)
        long = make_timer(receiver.url("/sleep/60"), delay_seconds=0)
        receiver.wait_for(2)
        begun = time.monotonic()
        assert service.stop("worker") == 0
        # Not by waiting for the minute that the long one takes.
        assert time.monotonic() - begun < 45
        assert Delivery.objects.get(timer=short).state == State.SUCCEEDED
        assert [a.error for a in Attempt.objects.filter(delivery__timer=long)] == ["interrupted"]
        service.start("worker", wait=False)
        receiver.wait_for(2, path="/sleep/60")


def test_foreign_edits_reach_the_receiver(receiver, make_timer):
    """Disable, enable, move and delete by ORM code and by bare updates, and watch what is called."""
    names = ("kept", "disabled", "resumed", "moved-away", "deleted", "bare-disabled", "bare-moved-away")
    with running("worker", "beat"):
        # Made when both are up, so that every edit is done long before the moment.
        timers = {name: make_timer(receiver.url(f"/{name}"), delay_seconds=8) for name in names}
        timers["moved-up"] = make_timer(receiver.url("/moved-up"), delay_seconds=600)
        row = {name: PeriodicTask.objects.select_related("clocked").get(timer=timer) for name, timer in timers.items()}
        far = row["kept"].clocked.clocked_time.replace(year=2040)
        for name in ("disabled", "resumed"):
            row[name].enabled = False
            row[name].save()
        row["resumed"].enabled = True
        row["resumed"].save()
        row["moved-up"].clocked = ClockedSchedule.objects.create(clocked_time=row["kept"].clocked.clocked_time)
        row["moved-up"].save()
        row["moved-away"].clocked.clocked_time = far
        row["moved-away"].clocked.save()
        row["deleted"].delete()
        PeriodicTask.objects.filter(pk=row["bare-disabled"].pk).update(enabled=False)
        ClockedSchedule.objects.filter(pk=row["bare-moved-away"].clocked_id).update(clocked_time=far)
        receiver.wait_for(3)
        # None of the others is called.
        time.sleep(2)
        assert sorted(call.path for call in receiver.calls) == ["/kept", "/moved-up", "/resumed"]
        services.run_now(timers["disabled"].pk)
        receiver.wait_for(1, path="/disabled")


@pytest.mark.parametrize("beside", [False, True])
def test_stock_scheduler_fires_the_row_once_and_not_early(receiver, make_timer, beside):
    timers = {f"/{number}": make_timer(receiver.url(f"/{number}"), delay_seconds=7 + number) for number in range(3)}
    stock = "django_celery_beat.schedulers:DatabaseScheduler"
    with running("worker", "beat", scheduler=stock) as service:
        if beside:
            service.scheduler = type(service).scheduler
            service.start("beat-2")
        calls = receiver.wait_for(3)
        # Stock disables a one-off a tick after it has run it.
        wait_until(lambda: not PeriodicTask.objects.filter(task=TASK_NAME, enabled=True).exists())
        # No second call of any comes.
        time.sleep(2)
        assert len(receiver.calls) == 3
        for call in calls:
            assert call.at >= due_at(timers[call.path].pk)
        wait_until(lambda: Delivery.objects.filter(state=State.SUCCEEDED).count() == 3)
        rows = PeriodicTask.objects.filter(task=TASK_NAME)
        # Each beat writes down later what it ran.
        wait_until(
            lambda: (
                [(row.enabled, row.total_run_count, row.last_run_at is not None) for row in rows.all()]
                == [(False, 1, True)] * 3
            )
        )


def test_operators_own_tasks_keep_firing(make_timer):
    make_timer(delay_seconds=3600)
    every = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
    theirs = "webtask_scheduler.scheduler.tasks.reconcile"
    interval = PeriodicTask.objects.create(name="every second", task=theirs, interval=every)
    soon = ClockedSchedule.objects.create(clocked_time=Timer.objects.get().created_at)
    clocked = PeriodicTask.objects.create(name="once", task=theirs, clocked=soon, one_off=True)
    with running("worker", "beat"):
        wait_until(lambda: _written_back(clocked).enabled is False)
        wait_until(lambda: _written_back(interval).total_run_count >= 3)


def _written_back(task):
    """Return a row after stock beat wrote it back, which it does when the marker row tells of a change."""
    PeriodicTasks.update_changed()
    # Beat looks at the marker once a second.
    time.sleep(1.5)
    return PeriodicTask.objects.get(pk=task.pk)


def test_beat_waits_for_a_database_and_says_so_in_one_line(receiver, make_timer):
    make_timer(receiver.url(), delay_seconds=2)
    with running("worker", "beat") as service:
        # Every connection is cut, again and again, for three seconds.
        stop = time.monotonic() + 3
        while time.monotonic() < stop:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            time.sleep(0.3)
        receiver.wait_for(1)
        wait_until(lambda: Delivery.objects.get().state == State.SUCCEEDED)
        assert len(receiver.calls) == 1
        assert "Traceback" not in service.log("beat")
        assert service.log("beat").count("dispatch_failing") <= 12
        assert service.processes["beat"].poll() is None


def test_many_timers_at_one_moment_are_each_called_once(receiver):
    stored = services.schedule([services.NewTimer(web_url=receiver.url(f"/{n}"), delay_seconds=3) for n in range(300)])
    with running("worker", "beat", "worker-2", "beat-2"):
        receiver.wait_for(300)
        wait_until(lambda: Delivery.objects.filter(state=State.SUCCEEDED).count() == 300)
        # No second call of any comes.
        time.sleep(1)
    assert sorted(call.path for call in receiver.calls) == sorted(f"/{n}" for n in range(300))
    assert min(call.at for call in receiver.calls) >= stored[0].due_at.timestamp()


def test_timer_that_recurs_is_called_at_each_of_its_moments(receiver):
    with running("web", "worker", "beat") as service:
        wait_until(lambda: service.get("/readyz")[0] == 200)
        status, body = service.post({"every": "PT1S", "max_occurrences": 4, "web_url": receiver.url("/tick")})
        assert status == 201
        calls = receiver.wait_for(4)
        wait_until(lambda: service.get(f"/timer/{body['task_id']}")[1]["status"] == "succeeded")
        # No fifth call comes.
        time.sleep(1.5)
        assert len(receiver.calls) == 4
        first = datetime.fromisoformat(body["due_at"]).timestamp()
        for number, call in enumerate(calls):
            assert call.headers["webtask-occurrence"] == str(number + 1)
            assert 0 <= call.at - (first + number) <= 0.9
        assert len({call.headers["webhook-id"] for call in calls}) == 4
        assert not PeriodicTask.objects.get(timer=body["task_id"]).enabled


def test_timer_that_recurs_goes_on_after_its_worker_is_killed_in_a_call(receiver):
    with running("web", "worker", "beat") as service:
        _, body = service.post({"every": "PT3S", "web_url": receiver.url("/flaky/0"), "timeout_seconds": 5})
        receiver.wait_for(1)
        _, slow = service.post({"every": "PT3S", "web_url": receiver.url("/sleep/2"), "timeout_seconds": 5})
        receiver.wait_for(1, path="/sleep")
        service.kill("worker")
        service.start("worker")
        # Both go on: the one whose call was cut off within a lease.
        before = len([call for call in receiver.calls if call.path.startswith("/sleep")])
        receiver.wait_for(before + 2, seconds=leases.RUNNING_LEASE_SECONDS + RECOVERY_SECONDS + 10, path="/sleep")
        receiver.wait_for(3, path="/flaky")
        for timer_id in (body["task_id"], slow["task_id"]):
            assert Delivery.objects.filter(timer=timer_id).open().count() == 1


def test_outcome_is_called_back(receiver):
    with running("web", "worker", "beat") as service:
        _, body = service.post({"seconds": 0, "web_url": receiver.url("/work"), "callback_url": receiver.url("/done")})
        (call,) = receiver.wait_for(1, path="/done")
        assert (call.json["type"], call.json["task_id"]) == ("timer.succeeded", body["task_id"])
        assert call.headers["Content-Type"] == "application/json"


def test_bulk_operation_goes_on_where_a_killed_worker_left_it(make_timer):
    with running("web", "worker", "beat") as service:
        wait_until(lambda: service.get("/readyz")[0] == 200)
        services.schedule([services.NewTimer(web_url=f"http://a.example/{n}", delay_seconds=3600) for n in range(5000)])
        other = make_timer("http://b.example/", delay_seconds=3600)
        order = {"action": "cancel", "filter": {"host": "a.example"}}
        status, counted = service.post(order | {"dry_run": True}, path="/timer/bulk")
        assert status == 202
        wait_until(lambda: service.get(f"/timer/bulk/{counted['bulk_id']}")[1]["status"] == "done")
        assert service.get(f"/timer/bulk/{counted['bulk_id']}")[1]["matched"] == 5000
        assert not Delivery.objects.filter(state=State.CANCELLED).exists()
        _, begun = service.post(order, path="/timer/bulk")
        wait_until(lambda: service.get(f"/timer/bulk/{begun['bulk_id']}")[1]["changed"] > 0)
        service.kill("worker")
        service.start("worker")
        wait_until(lambda: service.get(f"/timer/bulk/{begun['bulk_id']}")[1]["status"] == "done")
        assert service.get(f"/timer/bulk/{begun['bulk_id']}")[1]["matched"] == 5000
        assert Delivery.objects.filter(state=State.CANCELLED).count() == 5000
        assert Delivery.objects.get(timer=other).state == State.SCHEDULED


def test_undo_reaches_what_an_operation_changed_although_workers_were_killed(make_timer):
    def paused():
        return Delivery.objects.filter(state=State.PAUSED).count()

    def killed_in(order):
        """Begin an operation, kill the worker when it has changed some timers, and return it when it is done."""
        _, begun = service.post(order, path="/timer/bulk")
        wait_until(lambda: service.get(f"/timer/bulk/{begun['bulk_id']}")[1]["changed"] > 0)
        service.kill("worker")
        service.start("worker")
        wait_until(lambda: service.get(f"/timer/bulk/{begun['bulk_id']}")[1]["status"] == "done")
        return service.get(f"/timer/bulk/{begun['bulk_id']}")[1]

    with running("web", "worker", "beat") as service:
        wait_until(lambda: service.get("/readyz")[0] == 200)
        services.schedule([services.NewTimer(web_url=f"http://a.example/{n}", delay_seconds=3600) for n in range(4000)])
        before = [make_timer("http://a.example/", delay_seconds=3600).pk for _ in range(20)]
        for timer_id in before:
            services.pause(timer_id)
        done = killed_in({"action": "pause", "filter": {"host": "a.example"}})
        assert (done["matched"], done["changed"], paused()) == (4020, 4000, 4020)
        # One that somebody paused anew meanwhile is no longer the operation's.
        kept = Timer.objects.exclude(pk__in=before).first()
        services.resume(kept.pk)
        services.pause(kept.pk)
        undone = killed_in({"action": "resume", "filter": {"changed_by": done["bulk_id"]}})
        assert undone["changed"] == 3999
        assert set(Delivery.objects.filter(state=State.PAUSED).values_list("timer", flat=True)) == {*before, kept.pk}


def test_service_is_ready_while_a_worker_moves_and_says_when_none_does():
    with running("web", "worker", "beat") as service:
        wait_until(lambda: service.get("/readyz")[0] == 200)
        pid = service.processes["worker"].pid
        assert Worker.objects.get(kind=facts.CALLS).name.endswith(f":{pid}")
        assert check_health("worker") == (0, "")
        service.signal("worker", signal.SIGSTOP)
        wait_until(lambda: service.get("/readyz")[0] == 503)
        assert re.fullmatch(r"no worker was seen for \d+ s", service.get("/readyz")[1]["checks"]["worker"])
        _, body = service.post({"seconds": 0, "web_url": "http://127.0.0.1:9/"})
        assert re.match(r"No worker has been at work for \d+ s; ", body["reason"])
        service.signal("worker", signal.SIGCONT)
        wait_until(lambda: service.get("/readyz")[0] == 200)
        # One that ends in an orderly way is not missed.
        service.stop("worker")
        assert not Worker.objects.exists()
        wait_until(lambda: service.get("/readyz")[1]["checks"]["worker"] == "no worker was ever seen")


def check_health(*words):
    done = subprocess.run(
        [sys.executable, "scripts/healthcheck.py", *words],
        cwd=CHECKOUT,
        env=os.environ | {"DATABASE_URL": database_url()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def test_health_check_names_a_worker_whose_starter_or_ledger_does_not_move():
    here = f"{socket.gethostname()}:1"
    note = {"name": here, "kind": "calls", "held": 0, "running": 0}
    assert check_health("worker") == (1, "No worker of this machine was ever seen at work.")
    assert check_health("beat") == (1, "No beat of this machine was ever seen at work.")
    facts.note_worker(starter_idle_seconds=0.0, **note)
    facts.note_worker(starter_idle_seconds=60.0, **note | {"name": "another:1"})
    assert check_health("worker") == (0, "")
    assert check_health("worker", "1") == (0, "")
    assert check_health("worker", "2") == (1, "No worker of this machine was ever seen at work.")
    facts.note_worker(starter_idle_seconds=60.0, **note)
    assert re.fullmatch(rf"worker {here}: its starter has not moved for 6\d s\.", check_health("worker")[1])
    facts.note_worker(starter_idle_seconds=0.0, ledger_idle_seconds=60.0, **note)
    assert re.fullmatch(rf"worker {here}: its ledger has not moved for 6\d s\.", check_health("worker")[1])
    Worker.objects.update(seen_at=ClockTimestamp() - timedelta(seconds=40))
    assert re.fullmatch(r"No worker of this machine was seen at work for 4\d s\.", check_health("worker")[1])
