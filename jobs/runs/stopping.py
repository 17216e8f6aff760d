"""Handles SIGTERM, from a preemption, `transloom stop` or `kill`: a running training first saves a checkpoint, then the
command ends with exit code 143."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_CODE = 128 + signal.SIGTERM  # a shell's exit code for a process that SIGTERM ended
SAME_SECONDS = 5.0  # within which a further SIGTERM is the same one
SECONDS_BETWEEN_LOOKS = 0.2  # a worker's interval between checks for a stop


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the command; the argument is the message for the user. The class is a KeyboardInterrupt, as all
    handlers of Ctrl-C fit SIGTERM too."""


@contextmanager
def ended_by_sigterm() -> Iterator[Callable[[], bool]]:
    """Ends the block with Terminated at SIGTERM, whatever the interrupt became on its way out of the block. Yields a
    function that tells whether SIGTERM came: code that catches every Exception may have swallowed the interrupt.

    Raises:
        Terminated: SIGTERM came.
    """
    came = False

    def end(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt  # Ray's waiting lets only this exception out

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield lambda: came
    except BaseException as error:  # an import that is interrupted fails with an ImportError
        if not came or isinstance(error, Terminated):
            raise
        raise Terminated("ended by SIGTERM. Finished stages and checkpoints are kept") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_sigterm(action: Callable[[], object], limit: float | None = None) -> Iterator[None]:
    """Within the block the first SIGTERM calls `action`; only one that comes SAME_SECONDS later has its previous
    effect, since supervisors send the same one twice, to the process and to its group.

    Args:
        limit: seconds after which the block has the previous effect by itself, if it has not ended.
    """
    before = signal.getsignal(signal.SIGTERM)
    first_at: float | None = None
    second: threading.Timer | None = None

    def end() -> None:
        nonlocal first_at
        first_at = float("-inf")
        os.kill(os.getpid(), signal.SIGTERM)

    def act(number: int, frame: object) -> None:
        nonlocal first_at, second
        if first_at is None:
            first_at = time.monotonic()
            action()
            if limit is not None:
                second = threading.Timer(limit, end)
                second.daemon = True
                second.start()
        elif time.monotonic() - first_at >= SAME_SECONDS:
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, act)
    try:
        yield
    finally:
        if second is not None:
            second.cancel()
        signal.signal(signal.SIGTERM, before)


def watched(file: Path) -> Callable[[], bool]:
    """Returns a function that tells whether `file`, which exists from the start, has been written to. A machine that
    shares a folder over a network may see a new file late, but sees new contents at once when it opens the file.

    The function raises FileNotFoundError if the file is gone: then the caller belongs to an ended attempt.
    """
    looked_at = float("-inf")

    def is_written() -> bool:
        nonlocal looked_at
        if time.monotonic() - looked_at < SECONDS_BETWEEN_LOOKS:
            return False
        looked_at = time.monotonic()
        try:
            return bool(file.read_bytes())
        except FileNotFoundError:
            raise
        except OSError:  # a short network fault must not end a worker
            return False

    return is_written
