"""The errors of a call: the receiver's, or this machine's."""

import errno

# What this machine may run out of. A lack of local ports (EADDRNOTAVAIL) is recognised where a connection is made,
# because an address that this machine has no route to gives the same number.
_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class CallError(Exception):
    """A call got no complete answer. `kind` is one of models.ErrorKind, the text is for a person.

    After a `permanent` one, calling again cannot do better.
    """

    def __init__(self, kind: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.permanent = permanent


class LocalError(Exception):
    """A lack of descriptors, memory, threads or ports on this machine: the receiver did nothing wrong.

    The call may be made again later and must not count as an attempt.
    """


def is_local(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, is a lack of this machine."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _LACKS):
            return True
        # `threading` raises this error; it has no class of its own.
        if isinstance(cause, RuntimeError) and "can't start new thread" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
