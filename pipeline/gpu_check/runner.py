"""Runs the parts of the check one after the other, each in a process of its own, within a total time.

What one part does, fails at or runs out of ends no other. The report is written anew after every part, so that
whatever ends the check leaves what was found until then.
"""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.gpu_check.outcome import Outcome, Skipped

BUDGET = 540.0  # seconds, for all parts
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
SECONDS_TO_END = 5.0
LAST_WORDS = 1500  # bytes of a part's output that its record keeps where it died


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        packages: import names of what it needs beside torch, NumPy, safetensors and sentencepiece.
        seconds: what it takes on a GPU, roughly; where less is left of the total it does not begin.
        limit: seconds after which it is ended, and has failed.
        after: a part without which it means nothing: where that one was skipped, so is this one.
    """

    name: str
    what: str
    packages: tuple[str, ...] = ()
    seconds: float = 20.0
    limit: float = 60.0
    after: str | None = None


@dataclass
class Record:
    """How a part ended.

    Attributes:
        status: "passed", "failed" or "skipped". why: it did not pass; else empty.
        summary: one line. figures, targets: JSON values.
    """

    name: str
    what: str
    status: str
    why: str = ""
    seconds: float = 0.0
    summary: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)


def run_parts(
    parts: Sequence[Part],
    command: Callable[[Part, Path], Sequence[str]],
    folder: Path,
    tell: Callable[[list[Record], Record], None],
    budget: float = BUDGET,
) -> list[Record]:
    """Runs the parts in their order, which is that of their importance.

    Args:
        command: what runs a part, which writes its record (`work`) into the given file.
        folder: for each part's output, <name>.log.
        tell: called after every part with all records so far, and the newest.
        budget: seconds for all parts.
    """
    started_at = time.monotonic()
    records: list[Record] = []
    for part in parts:
        left = budget - (time.monotonic() - started_at)
        why = _why_not(part, records, left)
        if why:
            record = Record(part.name, part.what, SKIPPED, why)
        else:
            record = _run(part, command, folder, min(part.limit, left))
        records.append(record)
        tell(records, record)
    return records


def _why_not(part: Part, records: Sequence[Record], left: float) -> str:
    """Why a part does not begin; empty where it does."""
    for record in records:
        if record.name == part.after and record.status == SKIPPED:
            return record.why
    missing = [name for name in part.packages if not _is_installed(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if left < part.seconds:
        return f"takes about {part.seconds:.0f} s, and {max(0.0, left):.0f} s are left of the check's time"
    return ""


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _run(part: Part, command: Callable[[Part, Path], Sequence[str]], folder: Path, limit: float) -> Record:
    answer, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    answer.unlink(missing_ok=True)
    started_at = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command(part, answer), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - started_at
    try:
        record = Record(**{**read_json(answer), "seconds": seconds})  # though the process may not have ended after it
    except (OSError, ValueError, TypeError):
        if code is None:
            return Record(part.name, part.what, FAILED, f"ended after {limit:.0f} s, its limit", seconds)
        said = log.read_bytes()[-LAST_WORDS:].decode(errors="replace").strip()
        return Record(part.name, part.what, FAILED, f"exit code {code}; it said: {said or 'nothing'}", seconds)
    answer.unlink()
    return record


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the part with all that it has started; it has nothing to lose."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(SECONDS_TO_END)


def work(part: Part, function: Callable[[], Outcome], answer: Path) -> None:
    """A part's process: computes, and writes the record, whatever happens."""
    record = Record(part.name, part.what, FAILED)
    try:
        outcome = function()
        record.summary, record.figures = outcome.summary, outcome.figures
        record.targets = [target.as_dict() for target in outcome.targets]
        record.why = "; ".join(
            f"{one.what} is {one.value:.4g}, not at {'least' if one.at_least else 'most'} {one.goal:g}"
            for one in outcome.missed
        )
        record.status = FAILED if record.why else PASSED
    except Skipped as reason:
        record.status, record.why = SKIPPED, str(reason)
    except UserError as error:
        record.why = str(error)
    except Exception as error:  # running out of the GPU's memory among them
        traceback.print_exc()
        record.why = f"{type(error).__name__}: {error}"
    write_json(answer, asdict(record))


def as_report(records: Sequence[Record], context: Mapping[str, Any]) -> dict[str, Any]:
    """The whole check as JSON values."""
    return {**context, "parts": [asdict(record) for record in records]}
