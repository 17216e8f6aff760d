"""Notices the loss of a command's Ray, before Ray ends the command's process without a message."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transloom.pipeline.errors import UserError

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_IN_VAIN = 3  # in a row: a busy head node may answer a connection late
ANSWER_SECONDS = 4.0
SECONDS_TO_END = 30.0  # for the command's end after the loss; then the process ends at once


@contextmanager
def ended_by_loss(missing: Callable[[], str | None], advice: str) -> Iterator[None]:
    """Ends the block if Ray is gone.

    Args:
        missing: names the part of Ray that does not answer; None: all is well. Called in a thread.
        advice: the end of the message.
    Raises:
        UserError: Ray is gone.
    """
    over = threading.Event()
    message: str | None = None

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # Ray's waiting lets only this exception out

    def watch() -> None:
        nonlocal message
        in_vain = 0
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            lost = missing()
            in_vain = in_vain + 1 if lost else 0
            if in_vain >= LOOKS_IN_VAIN:
                message = f"{lost} is gone: was it killed, or was memory short? {advice}"
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not over.wait(SECONDS_TO_END):  # Ray's own shutdown waits for processes that are gone
                    print(f"transloom: {message}", file=sys.stderr, flush=True)
                    os._exit(2)
                return

    before = signal.signal(signal.SIGUSR1, end)
    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def refusal(address: str, seconds: float = ANSWER_SECONDS) -> str | None:
    """Why no server answers at host:port; None: a server listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
