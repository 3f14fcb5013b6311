"""The pages, asked as a browser asks them."""

import pytest

pytestmark = pytest.mark.django_db


def test_empty(client):
    for path in ("/", "/timers", "/timers/new", "/demo/receiver", "/login"):
        answer = client.get(path, headers={"accept": "text/html"})
        assert answer.status_code == 200, path
