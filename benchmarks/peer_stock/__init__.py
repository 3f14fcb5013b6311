"""A project with stock django-celery-beat, as its documentation sets one up; run in an environment of its own."""
