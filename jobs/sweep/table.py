"""What a person sees while a sweep runs: a table that is refreshed on a terminal, a line for each event elsewhere."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.text import Text

from transloom.jobs.runs.workspace import Run
from transloom.jobs.terminal.console import clock, console, table
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import PROGRESS_FILE
from transloom.pipeline.sweep.space import Value
from transloom.pipeline.sweep.study import Record, State
from transloom.pipeline.tasks.task import Metric

PLACES = ("trial", "gen", "member")  # the last two of a population
MOST_ENDED = 8  # of the trials that have ended, the best ones


class Board:
    """Shows the trials of a study while the block runs.

    Args:
        names: the parameters.
        total: how many trials there are to be.
        max_steps: of a whole training.
        metric: what the trials are scored by.
    """

    def __init__(
        self, title: str, names: Sequence[str], total: int, max_steps: int, known: Sequence[Record], metric: Metric
    ) -> None:
        self._title = title
        self._names = names
        self._total = total
        self._max_steps = max_steps
        self._metric = metric
        self._records = {one.number: one for one in known if one.state is not State.running}
        self._runs: dict[int, Run] = {}
        self._lock = threading.Lock()  # Live draws in a thread of its own
        self._live: Live | None = None

    def __enter__(self) -> "Board":
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=console,
                refresh_per_second=1,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live:
            self._live.stop()

    def began(self, record: Record, run: Run) -> None:
        with self._lock:
            self._records[record.number], self._runs[record.number] = record, run
        again = f", going on at {record.tokens:,} tokens" if record.curve else ""
        place = f"generation {record.generation}, member {record.member}, " if record.generation else ""
        origin = f", with the weights of trial {record.parent}" if record.parent else ""
        self._say(f"trial {record.number} of {self._total}: {place}{in_words(record.point)}{origin}{again}")

    def reported(self, record: Record) -> None:
        tokens, score = record.curve[-1]
        eta = self._progress(record)[3]
        self._say(f"trial {record.number}: {self._named(score)} at {tokens:,} tokens{eta and f'  ETA {eta}'}")

    def ended(self, record: Record) -> None:
        with self._lock:
            self._records[record.number] = record
            self._runs.pop(record.number, None)
        score = "" if record.score is None else f", {self._named(record.score)}"
        why = f": {record.failure}" if record.failure else ""
        self._say(f"trial {record.number}: {record.state.value}{score}{why}")

    def _named(self, score: float) -> str:
        return f"{self._metric.title} {self._metric.shown(score)}"

    def _say(self, text: str) -> None:
        if self._live is None:
            console.print(f"  {text}")

    def _progress(self, record: Record) -> list[str]:
        """Step, score, state, ETA."""
        try:
            known: Mapping[str, Any] = read_json(self._runs[record.number].folder / PROGRESS_FILE)
        except (OSError, ValueError, KeyError):
            known = {}
        score = self._metric.shown(record.curve[-1][1]) if record.curve else ""
        step = f"{known['step']:,}/{self._max_steps:,}" if "step" in known else ""
        eta = f"{clock(known['eta_seconds'])}" if "eta_seconds" in known else ""
        return [step, score, known.get("doing") or ("running" if known else "starting"), eta]

    def _render(self) -> Text:
        with self._lock:
            records, running = list(self._records.values()), set(self._runs)
        ended = [one for one in records if one.number not in running]
        best = sorted(ended, key=lambda record: record.sort_key)
        rows = []
        for one in sorted((one for one in records if one.number in running), key=lambda one: one.number):
            rows.append([*_place(one), *values_of(one, self._names), *self._progress(one)])
        for one in best[:MOST_ENDED]:
            score = "" if one.score is None else self._metric.shown(one.score)
            cells = [f"{one.tokens:,} tok", score, one.state.value, ""]
            rows.append([*_place(one), *values_of(one, self._names), *cells])
        places = PLACES if any(one.generation for one in records) else PLACES[:1]
        columns = [*places, *short_names(self._names), "step", self._metric.title, "state", "ETA"]
        count = len(self._names) + len(places) - 1
        title = f"{self._title}: {len(ended)} of {self._total} trials ended"
        if best and best[0].score is not None:
            title += f", the best with {self._named(best[0].score)}"
        shown = table(title, columns, rows or [[""] * len(columns)], right=(0, count + 1, count + 2, count + 4))
        shown.no_wrap, shown.overflow = True, "ellipsis"
        return shown


def _place(record: Record) -> list[str]:
    """What stands under PLACES."""
    return [str(record.number), *([str(record.generation), str(record.member)] if record.generation else [])]


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of settings' names, where that is enough to tell them apart."""
    leaves = [name.rpartition(".")[2] for name in names]
    return [leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(names, leaves, strict=True)]


def in_words(point: Mapping[str, Value]) -> str:
    """schedule.peak_learning_rate=0.0012, model.dropout=0.2: as it would be given on the command line."""
    return ", ".join(f"{name}={shown_value(value)}" for name, value in point.items()) or "as the experiment has it"


def values_of(record: Record, names: Sequence[str]) -> list[str]:
    return [shown_value(record.point[name]) if name in record.point else "-" for name in names]


def shown_value(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
