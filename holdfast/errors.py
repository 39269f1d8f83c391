"""The ways a Holdfast command can fail, and their exit statuses."""

from .terminal import printable

LONGEST = 2000  # characters of a message; a name of more is no name


class HoldfastError(Exception):
    """Something failed that was not the user's input (exit status 1).

    The message is one line, and not a long one, whatever the names in it are: they may come from
    anybody's file.
    """

    exit_status = 1
    said = False  # whether another process of the same work has told the user already

    def __init__(self, message: str = ""):
        line = printable(message)
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
        super().__init__(line)


class OutOfMemory(HoldfastError):
    """The machine, or its accelerator, has not enough memory for what was tried."""


class NotMet(HoldfastError):
    """A run does not meet what was required of it (exit status 3)."""

    exit_status = 3


class InputError(HoldfastError, ValueError):
    """Bad input: the message is one line that names what is wrong, where, and what to do.

    It is a `ValueError`, so that callers of the Python API need not know Holdfast's own
    exceptions. The command line prints the message without a traceback (exit status 2).
    """

    exit_status = 2
