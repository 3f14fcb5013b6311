"""A minimal view: validate, save a ClockedSchedule and a PeriodicTask by the ORM, answer."""

import json
import uuid
from datetime import timedelta
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, PeriodicTask
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView


class PlainSerializer(serializers.Serializer[Any]):
    hours = serializers.IntegerField(min_value=0, default=0)
    minutes = serializers.IntegerField(min_value=0, default=0)
    seconds = serializers.IntegerField(min_value=0, default=0)
    web_url = serializers.URLField()


class PlainView(APIView):
    def post(self, request: Request) -> Response:
        serializer = PlainSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        delay = timedelta(hours=wanted["hours"], minutes=wanted["minutes"], seconds=wanted["seconds"])
        clocked = ClockedSchedule(clocked_time=timezone.now() + delay)
        clocked.save()
        task_id = str(uuid.uuid4())
        task = PeriodicTask(
            name=task_id, task="call", clocked=clocked, one_off=True, kwargs=json.dumps({"web_url": wanted["web_url"]})
        )
        task.save()
        return Response({"task_id": task_id, "time_left_in_seconds": int(delay.total_seconds())}, status=201)


def healthz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    return HttpResponse("ok")


urlpatterns = [path("plain", PlainView.as_view()), path("healthz", healthz)]
