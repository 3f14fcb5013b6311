"""Who looks at the pages: fixtures that their tests share."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model


@pytest.fixture
def closed(settings: Any) -> None:
    """The service asks for a key, and its pages for a log-in."""
    settings.WEBTASK_API_AUTH = "key"


@pytest.fixture
def root(db: None) -> Any:
    return get_user_model().objects.create_superuser("root@example.com", "x")
