"""The operations on timers, for the API, the admin and other apps of the same project; docs/api.md shows how.

Each module has one topic; the names that are meant for callers are gathered here.
"""

from webtask_scheduler.scheduler.services.changing import (
    EXTRA_OPEN_MOST,
    Change,
    NothingToReplayError,
    TimerEndedError,
    TooManyRunsError,
    cancel,
    edit,
    pause,
    replay,
    resume,
    run_now,
)
from webtask_scheduler.scheduler.services.creating import (
    NewTimer,
    NothingPromisedError,
    Scheduled,
    schedule,
)
from webtask_scheduler.scheduler.services.foreign import (
    Schedule,
    check_edit,
    check_schedule,
    check_schedule_edit,
    lock_for_edit,
    note_run_by_stock,
    obey,
    obey_deleted,
    reconcile,
)
from webtask_scheduler.scheduler.services.many import (
    BATCH_ROWS,
    Ran,
    Switched,
    begin_bulk,
    cancel_many,
    replay_many,
    run_many_now,
    step_bulk,
    switch_many,
)
from webtask_scheduler.scheduler.services.quotas import QuotaError
from webtask_scheduler.scheduler.services.secrets import SECRETS_MOST, add_secret, delete_secret
from webtask_scheduler.scheduler.services.switches import (
    HOST_MOST,
    CallStopRefusedError,
    host_to_stop,
    resume_calls,
    stop_calls,
    stop_matches,
)

__all__ = [
    "BATCH_ROWS",
    "EXTRA_OPEN_MOST",
    "HOST_MOST",
    "SECRETS_MOST",
    "CallStopRefusedError",
    "Change",
    "NewTimer",
    "NothingPromisedError",
    "NothingToReplayError",
    "QuotaError",
    "Ran",
    "Schedule",
    "Scheduled",
    "Switched",
    "TimerEndedError",
    "TooManyRunsError",
    "add_secret",
    "begin_bulk",
    "cancel",
    "cancel_many",
    "check_edit",
    "check_schedule",
    "check_schedule_edit",
    "delete_secret",
    "edit",
    "host_to_stop",
    "lock_for_edit",
    "note_run_by_stock",
    "obey",
    "obey_deleted",
    "pause",
    "reconcile",
    "replay",
    "replay_many",
    "resume",
    "resume_calls",
    "run_many_now",
    "run_now",
    "schedule",
    "step_bulk",
    "stop_calls",
    "stop_matches",
    "switch_many",
]
