"""The real command line in processes of its own, and killing it as a power cut or a careless kill would."""

import io
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil

from transloom.jobs.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
MARK = "TRANSLOOM_TEST_COMMAND"  # in the environment of a command and of every process that came from it
SECONDS = 900.0  # for one command; a quiet machine needs a twentieth of it
SECONDS_TO_VANISH = 120.0  # for the processes that a command started, when it has ended

# A corpus, a model and a training of seconds: three validations and checkpoints, some words right at the end.
TINY = (
    "corpus.phrasebook_pairs=500",
    "corpus.held_out=20",
    "tokenizer.vocab_size=500",
    "model.d_model=32",
    "model.d_ff=64",
    "model.num_heads=2",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "batch.tokens=512",
    "batch.micro_tokens=256",
    "schedule.warmup_steps=20",
    "schedule.peak_learning_rate=0.02",
    "train.max_steps=150",
    "train.log_every=5",
    "train.validate_every=50",
    "train.checkpoint_every=50",
    "train.average=2",
    "decode=beam4",
    "engine=torch",
    "precision=fp32",
    "cluster.num_workers=2",
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Command:
    """`transloom <words>`, running in `folder`, whose default output folder is then `folder`/outputs.

    Args:
        added: environment variables beside the usual ones.
    """

    def __init__(self, folder: Path, *words: str, text: bytes = b"", added: Mapping[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self._files = [folder / f".{self.mark}.{name}" for name in ("in", "out", "err")]
        self._files[0].write_bytes(text)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {MARK: self.mark, "PYTHONPATH": str(ROOT), "COLUMNS": "80"} | dict(added or {})
        self._started_at = time.monotonic()
        with open(self._files[0], "rb") as given, open(self._files[1], "wb") as out, open(self._files[2], "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "transloom.jobs", *words],
                cwd=folder,
                env=environment,
                stdin=given,
                stdout=out,
                stderr=err,
                process_group=0,
            )

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """The outcome of a command that ends in time and leaves no process behind; any other fails the test."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds:g} s\n{self._outcome().said}") from None
        outcome = self._outcome()
        deadline = time.monotonic() + SECONDS_TO_VANISH
        while left := self.processes():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"processes were left behind: {left}\n{outcome.said}")
            time.sleep(0.1)
        return outcome

    def kill(self) -> Outcome:
        """SIGKILL to the command and everything that came from it, at one moment: a machine that loses its power."""
        while found := self.processes():
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        self.process.wait()
        return self._outcome()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The processes that came from the command, itself among them, whose command line begins with `name`."""
        return [process for process in psutil.process_iter() if _is(process, self.mark, name)]

    def workers(self) -> list[psutil.Process]:
        """The training's workers."""
        return self.processes("ray::RayTrainWorker")

    def listening(self) -> list[str]:
        """The addresses on which the command's processes listen for connections."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                connections = process.net_connections("tcp")
                found += [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN]
        return found

    def wait_for(self, path: Path, seconds: float = SECONDS) -> None:
        """Waits until the command has made the file or folder."""
        deadline = time.monotonic() + seconds
        while not path.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no {path} came\n{self._outcome().said}")
            time.sleep(0.003)

    def _outcome(self) -> Outcome:
        out, err = (path.read_bytes().decode() for path in self._files[1:])
        return Outcome(self.process.returncode, out, err, time.monotonic() - self._started_at)


def transloom(folder: Path, *words: str, text: bytes = b"", code: int = 0) -> Outcome:
    """Runs `transloom <words>` to its end, which must be with this exit code."""
    outcome = Command(folder, *words, text=text).wait()
    assert outcome.code == code, outcome.said
    return outcome


def transloom_here(folder: Path, *words: str, code: int = 0, environment: Mapping[str, str] | None = None) -> Outcome:
    """As `transloom`, in this process, which has imported already what a new one takes seconds to import. For tests
    that look neither at signals nor at the command's own process. The processes that it starts have to end, too."""
    mark = uuid.uuid4().hex
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    usual |= {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    started_at = time.monotonic()
    with (
        chdir(folder),
        patch.dict(os.environ, {**(usual if environment is None else environment), MARK: mark}, clear=True),
        patch.object(sys, "argv", ["transloom", *words]),  # which MLflow is told
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            found = main(words)
        except SystemExit as end:  # of --cfg job
            found = int(end.code or 0)
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # pyright: ignore[reportAttributeAccessIssue]
    outcome = Outcome(found, *said, time.monotonic() - started_at)
    assert outcome.code == code, outcome.said
    deadline = time.monotonic() + SECONDS_TO_VANISH
    while left := [process for process in psutil.process_iter() if _is(process, mark, "")]:
        assert time.monotonic() < deadline, f"processes were left behind: {left}\n{outcome.said}"
        time.sleep(0.1)
    return outcome


def _is(process: psutil.Process, mark: str, name: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and " ".join(process.cmdline()).startswith(name)
    except psutil.Error:  # gone, dead and not waited for, or somebody else's
        return False
