"""The one exception that is the user's to mend: the command prints it without a traceback, exit code 2."""

from transloom.pipeline.secrets import redacted


class UserError(Exception):
    """What is wrong, where (file and line, or the configuration key), and what to do about it. The message never holds
    a password or token: `redacted` takes them out."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class Diverged(UserError):
    """The training has diverged: on every rank, at the same step. The loop may go back to a checkpoint instead."""
