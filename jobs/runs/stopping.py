"""SIGTERM, as of a preemption, `transloom stop` or `kill`: a checkpoint first where a training is under way, then the
end, with exit code 143."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_CODE = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
SECONDS_BETWEEN_LOOKS = 0.2  # of a worker for whether it is to stop


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the command; the argument is what a person is told. A KeyboardInterrupt, for whatever handles
    Ctrl-C on the way is right for it too."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block with Terminated.

    Raises:
        Terminated: SIGTERM came.
    """
    came = False

    def end(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt  # Ray lets no other exception out of its own waiting

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not came or isinstance(interrupt, Terminated):
            raise
        raise Terminated("ended by SIGTERM. Finished stages and checkpoints are kept") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def on_sigterm(action: Callable[[], object], limit: float | None = None) -> Iterator[None]:
    """Within the block the first SIGTERM does `action`, and only a second one what it did before.

    Args:
        limit: seconds after which the process sends the second one itself, where the block has not ended by then.
    """
    before = signal.getsignal(signal.SIGTERM)
    second: threading.Timer | None = None

    def act(number: int, frame: object) -> None:
        nonlocal second
        signal.signal(signal.SIGTERM, before)
        action()
        if limit is not None:
            second = threading.Timer(limit, os.kill, (os.getpid(), signal.SIGTERM))
            second.daemon = True
            second.start()

    signal.signal(signal.SIGTERM, act)
    try:
        yield
    finally:
        if second is not None:
            second.cancel()
        signal.signal(signal.SIGTERM, before)


def watched(file: Path) -> Callable[[], bool]:
    """Whether somebody has written into `file`, which is there from the start: a machine that shares a folder over a
    network may see a new file late, but what is in a file that it opens anew at once.

    The function raises FileNotFoundError where the file is gone: whoever asks belongs to an attempt that is over.
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
        except OSError:  # a network's hiccup is no reason to end
            return False

    return is_written
