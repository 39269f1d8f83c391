"""The two ways a Holdfast command can fail, and their exit statuses."""


class HoldfastError(Exception):
    """Something failed that was not the user's input (exit status 1)."""

    exit_status = 1
    said = False  # whether another process of the same work has told the user already


class InputError(HoldfastError, ValueError):
    """Bad input: the message is one line that names what is wrong, where, and what to do.

    It is a `ValueError`, so that callers of the Python API need not know Holdfast's own
    exceptions. The command line prints the message without a traceback (exit status 2).
    """

    exit_status = 2
