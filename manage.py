#!/usr/bin/env python
"""Django's command line for this project."""

import sys

if __name__ == "__main__":
    from config import shared
    from config.listening import check, runserver_host
    from config.settings import choose

    choose()
    if sys.argv[1:2] == ["runserver"]:
        shared.listens_on = runserver_host(sys.argv[2:])
        check(shared.listens_on)
    from django.core.management import execute_from_command_line

    from webtask_scheduler.access import actor

    # Django's own commands too, such as createsuperuser, do what the audit log is told of.
    with actor.at_shell():
        execute_from_command_line(sys.argv)
