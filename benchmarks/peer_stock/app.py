"""The Celery application and its task; `celery -A benchmarks.peer_stock.app worker|beat`."""

import os

import requests
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.peer_stock.settings")

app = Celery("peer_stock")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task(name="call")
def call(url: str) -> int:
    return requests.post(url, json={"due": True}, timeout=10).status_code
