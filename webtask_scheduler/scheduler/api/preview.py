"""Previews a schedule: its next moments, and the clock changes in between."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
)
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from webtask_scheduler.scheduler.api.base import TimerAPIView
from webtask_scheduler.scheduler.api.document import described, problem_answers
from webtask_scheduler.scheduler.api.fields import InstantField, WholeNumberField
from webtask_scheduler.scheduler.api.schedules import ScheduleSerializer
from webtask_scheduler.scheduler.rules import recurrence
from webtask_scheduler.scheduler.rules.instants import instant_text
from webtask_scheduler.wording import translated


class PreviewSerializer(ScheduleSerializer):
    """A schedule to look at."""

    count = WholeNumberField(min_value=1, max_value=100, default=5, help_text="Moments to show.")
    after = InstantField(required=False, help_text="Moments after this one; default: now.")


def previewed(reader: PreviewSerializer) -> dict[str, Any]:
    """Return the next moments of a schedule as MomentsSerializer describes them."""
    attrs = reader.validated_data
    now = attrs.get("after") or timezone.now()
    schedule = reader.schedule(attrs, now=now)
    found = schedule.get("recurrence")
    if found is None:
        at = schedule.get("due_at") or now + timedelta(seconds=schedule["delay_seconds"])
        return {"moments": [{"at": instant_text(at), "local": at.isoformat(), "note": ""}], "more": False}
    zone = ZoneInfo(found.timezone)
    count = min(attrs["count"], schedule["max_occurrences"] or attrs["count"])
    moments: list[dict[str, str]] = []
    previous: datetime | None = None
    more = False
    for moment in found.moments(now):
        if len(moments) == count:
            more = schedule["max_occurrences"] is None or count < schedule["max_occurrences"]
            break
        note = translated(recurrence.transition_note(moment, previous, found.timezone)) if found.cron else ""
        moments.append({"at": instant_text(moment), "local": moment.astimezone(zone).isoformat(), "note": note})
        previous = moment
    return {"moments": moments, "more": more}


class MomentSerializer(serializers.Serializer[Any]):
    """One moment of a schedule."""

    at = serializers.DateTimeField(help_text="In UTC.")
    local = serializers.CharField(help_text="In the schedule's time zone, with its offset at that moment.")
    note = serializers.CharField(help_text="What the clocks of the zone do just before; empty where they do nothing.")


class MomentsSerializer(serializers.Serializer[Any]):
    """The next moments of a schedule."""

    moments = MomentSerializer(many=True)
    more = serializers.BooleanField(help_text="Whether there are moments after these.")


preview = described(
    "timer_preview",
    "Preview a schedule",
    "Its next moments, with what the clocks of its time zone do in between. Nothing is stored.",
    request=PreviewSerializer,
    responses={
        200: OpenApiResponse(
            MomentsSerializer,
            "The moments.",
            examples=[
                OpenApiExample(
                    "Across a change of clocks",
                    value={
                        "moments": [
                            {"at": "2026-03-28T08:00:00Z", "local": "2026-03-28T09:00:00+01:00", "note": ""},
                            {
                                "at": "2026-03-29T07:00:00Z",
                                "local": "2026-03-29T09:00:00+02:00",
                                "note": "Clocks in Europe/Berlin go forward between the previous moment and this one:"
                                " UTC+01:00 becomes UTC+02:00.",
                            },
                        ],
                        "more": True,
                    },
                    response_only=True,
                )
            ],
        ),
        **problem_answers(400, 403, 411, 413, 415, 503),
    },
    examples=[
        OpenApiExample(
            "At nine in Berlin, across a change of clocks",
            value={"cron": "0 9 * * *", "timezone": "Europe/Berlin", "after": "2026-03-27T12:00:00Z", "count": 2},
            request_only=True,
        )
    ],
)


class PreviewView(TimerAPIView):
    """`timer/preview`: the next moments of a schedule."""

    @preview
    def post(self, request: Request) -> Response:
        reader = PreviewSerializer(data=request.data)
        reader.is_valid(raise_exception=True)
        return Response(previewed(reader))
