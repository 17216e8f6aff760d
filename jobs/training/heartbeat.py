"""Signs of life: each worker writes its sign of life and its number of steps into a file in the run's folder. The
driver reads the files, and ends the workers if one hangs."""

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REST_SECONDS = 1.0  # between two signs, and between two reads of them
BEAT_BYTES = 100  # of every sign: overwriting a sign of equal size needs no space on a full disk
SECONDS_FOR_STACKS = 3.0  # for a process to write its own stacks
SECONDS_FOR_PY_SPY = 30.0


@dataclass(frozen=True)
class Worker:
    """A training worker's process: rank, ID of the Ray node, process ID."""

    rank: int
    node: str
    pid: int


class Heartbeat:
    """A worker's signs of life. A thread tells that the process runs; the training tells its progress."""

    def __init__(self, folder: Path, rank: int, limit: float) -> None:
        """
        Args:
            folder: for the file `rank_<rank>`.
            limit: seconds after which the driver takes a worker for hung; 0: no signs are written.
        """
        self._steps, self._alive, self._doing = 0, 0, "starting"
        if not limit or not folder.is_dir():
            return
        self._rest = min(REST_SECONDS, limit / 10)
        self._file = os.open(folder / f"rank_{rank}", os.O_WRONLY | os.O_CREAT, 0o600)
        # The handler is in C, so it runs even if the interpreter can't run Python. The file stays open till the end.
        self._stacks = open(folder / f"stacks_{os.getpid()}", "wb")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        threading.Thread(target=self._go_on, name="heartbeat", daemon=True).start()

    def begin(self, doing: str) -> None:
        """Tells that the worker begins other work than steps, which may take longer."""
        self._doing = doing

    def advance(self) -> None:
        """Tells that the worker has begun another micro-batch, or has taken a step."""
        self._steps, self._doing = self._steps + 1, ""

    def _go_on(self) -> None:
        while True:
            self._alive += 1
            beat = json.dumps({"alive": self._alive, "steps": self._steps, "doing": self._doing[:30]})
            with suppress(OSError):  # the next sign may succeed
                os.pwrite(self._file, beat.encode().ljust(BEAT_BYTES), 0)
            time.sleep(self._rest)


def read_heartbeats(folder: Path) -> dict[int, dict[str, Any]]:
    """The last sign of each rank that has written any."""
    beats = {}
    for file in folder.glob("rank_*"):
        with suppress(OSError, ValueError):  # half-written; the next read succeeds
            beats[int(file.name.removeprefix("rank_"))] = json.loads(file.read_bytes())
    return beats


def end_processes(workers: Sequence[Worker], signs: Path, target: Path, attempt: int) -> None:
    """Dumps the stacks of a node's workers into `target`, then kills the workers. A stopped process can't dump its own
    stacks; py-spy dumps them, if installed.

    Args:
        signs: the folder of the workers' signs of life.
    """
    with suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGUSR2)
    time.sleep(SECONDS_FOR_STACKS)
    py_spy = shutil.which("py-spy")
    for worker in workers:
        with suppress(OSError):
            own = signs / f"stacks_{worker.pid}"
            text = own.read_bytes() if own.exists() else b""
            if py_spy:
                text += _output_of([py_spy, "dump", "--pid", str(worker.pid)])
            state = _state_of(worker.pid)
            name = target / f"attempt_{attempt}_rank_{worker.rank}.txt"
            name.write_bytes(f"rank {worker.rank}, process {worker.pid}: {state}\n".encode() + text)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


def _output_of(command: Sequence[str]) -> bytes:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, timeout=SECONDS_FOR_PY_SPY).stdout
    return b""


def _state_of(pid: int) -> str:
    """The process's state in Linux' words, for example "T (stopped)"."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.removeprefix("State:").strip()
    return "gone"
