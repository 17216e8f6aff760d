"""Contenders that take turns: processes that stay alive, do what they are asked, and sleep in between.

So start and warm-up are outside of every figure, and all are measured within the same minutes. A contender is one or
more members (ranks); each connects to the driver's socket, gets a function that makes its answerer, and then answers
request after request until the connection closes: when the driver is gone, so are they.

`python -m transloom.pipeline.bench <socket> <name> <rank>` is a member in a process of its own; workers of Ray Train
call `serve`.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil

from transloom.pipeline.errors import UserError
from transloom.pipeline.search_path import search_environment

Answerer = Callable[[Any], Any]  # from a request to its answer; both are pickled
IsLost = Callable[[], str | None]  # why a member will never answer; None while it may

SECONDS_TO_START = 600.0  # a busy machine of two cores takes minutes to start some thirty processes


@dataclass(frozen=True)
class Failure:
    """An answer of a member that raised; `is_users` where it was a UserError."""

    message: str
    is_users: bool


def serve(address: str, name: str, rank: int = 0) -> None:
    """A member's life: connect, be told what to be, answer until the driver hangs up."""
    connection = Client(address, "AF_UNIX")
    connection.send((name, rank))
    with suppress(EOFError, OSError):
        answer: Answerer | None = None
        while True:
            request = connection.recv()  # asleep here while others have their turn
            try:
                if answer is None:
                    answer, reply = request()
                else:
                    reply = answer(request)
            except UserError as error:
                reply = Failure(str(error), is_users=True)
            except Exception:
                reply = Failure(traceback.format_exc(), is_users=False)
            connection.send(reply)


class Contender:
    """The driver's end of a contender: its members' connections, in the order of their ranks."""

    def __init__(self, name: str, members: list[Connection], is_lost: IsLost) -> None:
        self.name = name
        self._members, self._is_lost = members, is_lost

    def ask(self, request: Any) -> list[Any]:
        """Every member's answer to a request.

        Raises:
            UserError: a member died or refused.
        """
        self.send(request)
        return self.receive()

    def send(self, *requests: Any) -> None:
        """Gives one request to all members, or one to each, and does not wait; `receive` does."""
        each = requests if len(requests) > 1 else requests * len(self._members)
        try:
            for member, request in zip(self._members, each, strict=True):
                member.send(request)
        except (EOFError, OSError):
            self._raise_lost()

    def receive(self) -> list[Any]:
        """The answers to what was sent, in the order of the ranks."""
        try:
            return [self._checked(member.recv()) for member in self._members]
        except (EOFError, OSError):
            self._raise_lost()

    def _raise_lost(self) -> NoReturn:
        time.sleep(0.5)  # until its end is known
        raise UserError(f"bench: the contender {self.name} is gone: {self._is_lost() or 'its connection closed'}")

    def _checked(self, answer: Any) -> Any:
        if isinstance(answer, Failure):
            if answer.is_users:
                raise UserError(answer.message)
            raise RuntimeError(f"the contender {self.name} failed:\n{answer.message}")
        return answer

    @property
    def size(self) -> int:
        """How many members it has."""
        return len(self._members)

    def close(self) -> None:
        for member in self._members:
            member.close()


class Meeting:
    """Where contenders meet: a socket in a folder of its own, and the processes that were started here.

    A context manager: when it ends, however it ends, no process that was started here is left.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="transloom-bench-"))  # 0700: nobody else can connect
        self.address = str(self.folder / "socket")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.address)
        self._socket.listen(64)
        self._socket.settimeout(0.5)
        self._waiting: dict[tuple[str, int], Connection] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._contenders: list[Contender] = []

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, *_: object) -> None:
        for contender in self._contenders:
            contender.close()
        for connection in self._waiting.values():
            connection.close()
        self._socket.close()
        for process in self._processes:
            process.kill()  # it has nothing to lose
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_processes(self, name: str, count: int, environment: Mapping[str, str]) -> IsLost:
        """Starts `count` members as processes on this machine, with `environment` added to the driver's own."""
        log = self.folder / f"{name}.log"
        with open(log, "wb") as output:
            started = [
                subprocess.Popen(
                    [sys.executable, "-m", "transloom.pipeline.bench", self.address, name, str(rank)],
                    env={**os.environ, **search_environment(), **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is the driver's to deal with
                )
                for rank in range(count)
            ]
        self._processes += started

        def is_lost() -> str | None:
            codes = [process.poll() for process in started]
            if all(code is None for code in codes):
                return None
            said = log.read_bytes().decode(errors="replace").strip()
            return f"exit codes {codes}; it said: {said[-2000:] or 'nothing'}"

        return is_lost

    def meet(self, name: str, count: int, is_lost: IsLost, timeout: float = SECONDS_TO_START) -> Contender:
        """Waits until all `count` members of a contender have connected.

        Raises:
            UserError: one of them died, or did not come in time.
        """
        deadline = time.monotonic() + timeout
        while not all((name, rank) in self._waiting for rank in range(count)):
            if why := is_lost():
                raise UserError(f"bench: the contender {name} did not start: {why}")
            if time.monotonic() > deadline:
                raise UserError(f"bench: the contender {name} did not start within {timeout:.0f} s")
            with suppress(TimeoutError):
                accepted, _ = self._socket.accept()
                accepted.setblocking(True)
                connection = Connection(accepted.detach())
                self._waiting[connection.recv()] = connection
        contender = Contender(name, [self._waiting.pop((name, rank)) for rank in range(count)], is_lost)
        self._contenders.append(contender)
        return contender


def peak_bytes() -> int:
    """The most memory that this process has had resident, so far (VmHWM)."""
    for line in Path("/proc/self/status").read_bytes().split(b"\n"):
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def busy_seconds() -> tuple[float, float]:
    """CPU seconds, since the machine's start, of all its processes, and those that its host kept for others."""
    times = psutil.cpu_times()
    return times.user + times.system + times.nice + times.irq + times.softirq, times.steal
