"""The application that granian runs: Django, behind what reads bodies for it."""

from config.front import Front
from config.wsgi import application as django_application

application = Front(django_application)
