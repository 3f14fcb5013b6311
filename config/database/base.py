"""Django's PostgreSQL backend with a health check that costs no round trip."""

import select

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Asks the socket, not the server, whether a kept connection is still good; see `is_usable`."""

    def is_usable(self) -> bool:
        """Whether the connection can be used again.

        A server that ended it, by a restart or by hand, has sent an end of file, so an idle connection with something
        to read is a dead one. One whose network vanished is found out by the keepalives. Django's own check sends a
        query before the first one of each request, a sixth of what creating a timer takes.
        """
        if self.connection is None or self.connection.closed:
            return False
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poll.poll(0)
