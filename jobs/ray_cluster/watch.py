"""Notices that the Ray that a command works with is gone, before Ray ends the command's process without a word."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import UserError

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_IN_VAIN = 3  # in a row: a busy head node may let one connection wait
ANSWER_SECONDS = 4.0
SECONDS_TO_END = 30.0  # for what stands between the loss and the command's end; then the process ends at once


@contextmanager
def ended_by_loss(missing: Callable[[], str | None], advice: str) -> Iterator[None]:
    """Ends the block where Ray is gone.

    Args:
        missing: names what of Ray does not answer; None: all is well. Asked by a thread.
        advice: the end of the message.
    Raises:
        UserError: Ray is gone.
    """
    over = threading.Event()
    message: str | None = None

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # Ray lets no other exception out of its own waiting

    def watch() -> None:
        nonlocal message
        in_vain = 0
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            lost = missing()
            in_vain = in_vain + 1 if lost else 0
            if in_vain >= LOOKS_IN_VAIN:
                message = f"{lost} is gone: was it killed, or was memory short? {advice}"
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not over.wait(SECONDS_TO_END):  # Ray's own shutdown waits for what is gone
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
    """Why nobody answers at host:port; None: somebody listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
