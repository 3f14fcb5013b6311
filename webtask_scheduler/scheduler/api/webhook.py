"""Describes the call that a receiver gets, for the OpenAPI document."""

from drf_spectacular.utils import (
    OpenApiWebhook,
)

from webtask_scheduler.scheduler.api.document import ID

# Written out, because the generator omits the headers and the example of a webhook.
timer_due = OpenApiWebhook(
    name="timerDue",
    decorator={
        "post": {
            "operationId": "timer_due",
            "summary": "What your URL receives",
            "description": "At the promised moment `web_url` is called, with POST and this body where the timer says "
            "nothing else. An answer of 2xx within the time limit is a success; 410 ends the delivery and pauses a "
            "timer that recurs; anything else, a redirect included, is tried again as the timer's retry policy says. "
            "Calls come at least once: drop a `webhook-id` that you have seen.",
            "tags": ["Timers"],
            "parameters": [
                {
                    "in": "header",
                    "name": "webhook-id",
                    "required": True,
                    "description": "The same for every attempt at one promised moment.",
                    "schema": {"type": "string", "format": "uuid"},
                },
                {
                    "in": "header",
                    "name": "webhook-timestamp",
                    "required": True,
                    "description": "When this attempt was made, in seconds since 1970.",
                    "schema": {"type": "integer"},
                },
                {
                    "in": "header",
                    "name": "webhook-signature",
                    "required": False,
                    "description": "Standard Webhooks: `v1,` and a signature in base64, one for each active signing "
                    "secret, with spaces between them. Absent where there is no secret.",
                    "schema": {"type": "string"},
                },
                *(
                    {
                        "in": "header",
                        "name": name,
                        "required": name != "webtask-depth",
                        "description": description,
                        "schema": {"type": kind} | ({"format": form} if form else {}),
                    }
                    for name, kind, form, description in (
                        ("webtask-timer-id", "string", "uuid", "The timer's `task_id`."),
                        (
                            "webtask-depth",
                            "integer",
                            "",
                            "Of a timer that a call of another one led to: requests that pass this on make no timers.",
                        ),
                        ("webtask-due-at", "string", "date-time", "The promised moment."),
                        ("webtask-occurrence", "integer", "", "Which of the timer's moments, from 1."),
                        ("webtask-attempt", "integer", "", "Counts the calls for this moment, from 1."),
                        ("webtask-lateness-ms", "number", "", "This attempt's start minus its moment."),
                    )
                ),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "task_id": {"type": "string", "format": "uuid", "description": "The timer."},
                                "due_at": {
                                    "type": "string",
                                    "format": "date-time",
                                    "description": "The promised moment.",
                                },
                                "attempt": {
                                    "type": "integer",
                                    "minimum": 1,
                                    "description": "Counts the calls for this moment, from 1.",
                                },
                            },
                            "required": ["task_id", "due_at", "attempt"],
                        },
                        "examples": {
                            "AFirstAttempt": {
                                "summary": "A first attempt",
                                "value": {"task_id": ID, "due_at": "2026-01-05T09:00:05+00:00", "attempt": 1},
                            }
                        },
                    }
                },
            },
            "responses": {"2XX": {"description": "The call was taken. The body is not needed."}},
        }
    },
)
