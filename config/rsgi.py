"""The application that granian runs: Django, behind what reads bodies for it."""

import gc

from config.front import Front
from config.wsgi import application as django_application

# New objects between two looks for cycles. Python's 700 are there after ten small requests, whose objects are nearly
# all gone by themselves. It costs memory for as long: 26 MB more at most, with bodies of 200 KB and batches of 3 MB.
COLLECTED_AFTER = 20_000

application = Front(django_application)

# What is loaded stays for good: no collection need look at it again.
gc.collect()
gc.freeze()
gc.set_threshold(COLLECTED_AFTER, 10, 10)
