"""The application that granian runs: Django, behind what reads bodies for it."""

import gc

from config.front import Front
from config.wsgi import application as django_application

# New objects between two collections: a request of ours makes some 700 that another may refer to, and leaves almost
# none behind that refers to itself.
COLLECTED_AFTER = 20_000

application = Front(django_application)

# What is loaded stays for good: no collection need look at it again.
gc.collect()
gc.freeze()
gc.set_threshold(COLLECTED_AFTER, 10, 10)
