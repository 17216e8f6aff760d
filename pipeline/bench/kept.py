"""What a bench has measured so far, as JSON lines in its folder: a bench that was stopped goes on from there.

The first line, "bench", has what the figures depend on. A line follows for each turn, written when the turn has ended:
"training" and "matmul", then "decoding" and "exact" (the pass without a length penalty). Before the turns of a part
stands a line with its contenders: "contenders", "programs". "weights" says that the model folder is written, "decoded"
that decoding is done, and "finished" is the last line of a bench that measured all. Of part=length each measurement is
a line "length".
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.pipeline.files import atomic_write
from transloom.pipeline.tracking.tracker import flatten

TURNS_FILE = "turns.jsonl"


@dataclass
class Kept:
    """The lines of a bench, those of an earlier command first."""

    path: Path
    lines: list[dict[str, Any]]

    @property
    def turns(self) -> int:
        return sum(len(self.of(kind)) for kind in ("training", "decoding", "length"))

    def add(self, kind: str, **values: Any) -> None:
        """Appends a line, which is on the disk when this returns."""
        line = {"kind": kind, **values}
        with open(self.path, "ab", buffering=0) as file:
            file.write(_encode(line))
            os.fsync(file.fileno())
        self.lines.append(line)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind, without it."""
        return [{key: line[key] for key in line if key != "kind"} for line in self.lines if line["kind"] == kind]


def begin(folder: Path, basis: Mapping[str, Any]) -> Kept:
    """A bench that has measured nothing, in place of what the folder has of an earlier one.

    Args:
        basis: what the figures depend on, JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = {"kind": "bench", **basis}
    with atomic_write(folder / TURNS_FILE) as file:
        file.write(_encode(line))
    return Kept(folder / TURNS_FILE, [line])


def stopped_bench(folder: Path) -> Kept | None:
    """A bench that was stopped; None where it was finished, or where there is none. What a kill has torn, and what
    follows a damaged line, is left out."""
    path = folder / TURNS_FILE
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        try:
            line = json.loads(text)
            line["kind"]
        except (ValueError, TypeError, KeyError):
            break
        lines.append(line)
    is_whole = bool(lines) and lines[0]["kind"] == "bench" and lines[-1]["kind"] != "finished"
    return Kept(path, lines) if is_whole else None


def go_on(kept: Kept) -> Kept:
    """Makes the file of a bench that was stopped ready for more lines."""
    with atomic_write(kept.path) as file:
        file.write(b"".join(map(_encode, kept.lines)))
    return kept


def changes(kept: Kept, basis: Mapping[str, Any]) -> list[str]:
    """What the figures depend on and has changed since this bench was begun: "key (before -> now)"."""
    before, now = flatten(kept.of("bench")[0]), flatten(json.loads(_encode(basis)))
    return [
        f"{key} ({before.get(key, 'nothing')} -> {now.get(key, 'nothing')})"
        for key in dict.fromkeys([*now, *before])
        if before.get(key) != now.get(key)
    ]


def _encode(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
