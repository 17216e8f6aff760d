"""What a person sees while a job runs: stages with their times, a line of progress, tables at the end."""

import errno
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from transloom.jobs.terminal.printable import printable, printable_word
from transloom.pipeline.files import read_json
from transloom.pipeline.progress import Progress
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tasks.task import Metric


class SafeConsole(Console):
    """Shows no secret, and no character of a text that would steer the terminal. Leaves it to the command what to do
    when nobody reads its output; rich would end it as if it had failed."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(shown(one) if isinstance(one, str) else one for one in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = SafeConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)

# What `counter`, `training_line` and `following` show.
PROGRESS = re.compile(r"  (step [\d,]+/[\d,]+|.+: [\d,]+( of [\d,]+)?(   [\d,]+/s|$)|.+ …$)")
SECONDS_BETWEEN_LINES = 10.0  # where the output is no terminal, and a line can't be written over


def shown(text: str) -> str:
    """The text as people are to see it: `printable`, without its secrets."""
    return printable(redacted(text))


class StatusLine:
    """One line that says what is going on: written over on a terminal, repeated now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """
        Args:
            stream: by default standard output.
        """
        self._stream = stream
        self._is_terminal = self.stream.isatty()
        self._shown_at = float("-inf")
        self._shown = ""

    @property
    def stream(self) -> TextIO:
        """Where the line is written."""
        return self._stream or sys.stdout

    def show(self, text: str, now: bool = False) -> None:
        with _no_full_disk():
            self._show(shown(text).replace("\n", " "), now)

    def _show(self, text: str, now: bool) -> None:
        if self._is_terminal:
            self.stream.write(f"\r\x1b[2K{text[: console.width - 1]}")
            self.stream.flush()
        elif text != self._shown and (now or time.monotonic() - self._shown_at >= SECONDS_BETWEEN_LINES):
            print(text, file=self.stream, flush=True)
            self._shown_at = time.monotonic()
            self._shown = text

    def clear(self) -> None:
        if self._is_terminal:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()


@contextmanager
def _no_full_disk() -> Iterator[None]:
    """A line of progress that a full disk does not take, where the output is a file, is not shown."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def is_progress(line: str) -> bool:
    """Whether a line of a log is one that would be written over on a terminal."""
    return PROGRESS.match(line) is not None


def begin_stage(name: str) -> None:
    """Says which stage of the pipeline begins; `transloom jobs` reads it in the log."""
    console.print(f"Stage: {name}")


def counter(status: StatusLine) -> Progress:
    """A `progress(what, done, total)` with rate and remaining time."""
    started: dict[str, float] = {}

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        elapsed = time.monotonic() - started.setdefault(what, time.monotonic())
        rate = done / elapsed if elapsed > 0.1 else 0.0
        text = f"  {what}: {done:,}" + (f" of {total:,}" if total else "")
        if rate:
            text += f"   {rate:,.0f}/s" + (f"   ETA {clock((total - done) / rate)}" if total else "")
        text += f"   {note}" if note else ""
        status.show(text)

    return progress


def clock(seconds: float) -> str:
    """75 -> 1:15, 3675 -> 1:01:15"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def quantity(value: float) -> str:
    """1234567 -> "1.23 M", to be followed by the unit."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}"
    return f"{value:.0f} "


@contextmanager
def following(progress_file: Path, metric: Metric) -> Iterator[None]:
    """Shows what rank 0 writes into `progress_file` until the block ends. What an earlier attempt wrote is removed, for
    the clocks of two machines can't tell which is older."""
    stop = threading.Event()
    status = StatusLine()
    progress_file.unlink(missing_ok=True)
    seen: dict[str, Any] = {}

    def look(is_last: bool = False) -> None:
        try:
            fresh = read_json(progress_file)
        except (OSError, ValueError):
            fresh = {}
        if fresh:
            is_news = any(fresh.get(key) != seen.get(key) for key in ("validation_step", "rolled_back_from"))
            seen.clear()
            seen.update(fresh)
            status.show(training_line(seen, metric), now=is_news or is_last)

    def follow() -> None:
        while not stop.wait(0.5):
            look()
        look(is_last=True)  # a log is to have the step that a training came to

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    status.show("  starting the workers …", now=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        status.clear()


def training_line(progress: Mapping[str, Any], metric: Metric) -> str:
    """The progress of a training in one line.

    Args:
        metric: that the validation's score is one of.
    """
    parts = [f"  step {progress.get('step', 0):,}/{progress.get('max_steps', 0):,}"]
    if progress.get("max_minutes"):
        parts.append(f"{clock(progress.get('seconds', 0.0))} of {clock(60 * progress['max_minutes'])}")
    if "loss" in progress:
        parts += [
            f"loss {progress['loss']:.3f}",
            f"lr {progress['learning_rate']:.2e}",
            f"{_token_speeds(progress)} tok/s",
            f"padding {progress['padding_share']:.1%}",
            f"{quantity(progress['model_flops_per_second'])}FLOP/s",
        ]
    # A worker of before writes the score under the metric's own name.
    score = progress.get("validation_score", progress.get(f"validation_{metric.name}"))
    if score is not None:
        parts.append(f"validation {metric.title} {metric.shown(score)} at {progress['validation_step']:,}")
    if progress.get("rollbacks"):
        last = f", the last from step {progress['rolled_back_from']:,}" if "rolled_back_from" in progress else ""
        parts.append(f"rollbacks {progress['rollbacks']}{last}")
    if "eta_seconds" in progress:
        parts.append(f"ETA {clock(progress['eta_seconds'])}")
    if progress.get("doing"):
        parts.append(f"{progress['doing']} …")
    return "  ".join(parts)


def _token_speeds(progress: Mapping[str, Any]) -> str:
    """9,000 source + 9,100 target: tokens a second of each column."""
    ending = "_tokens_per_second"
    speeds = {key.removesuffix(ending): speed for key, speed in progress.items() if key.endswith(ending)}
    return " + ".join(f"{speed:,.0f} {column}" for column, speed in speeds.items())


def table(title: str, columns: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> Text:
    """Never folded, however narrow the terminal: a folder or a signature can be copied in one piece."""
    title = shown(title)
    columns, *rows = [[printable_word(redacted(cell)) for cell in cells] for cells in (columns, *rows)]
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        sides = [cell.rjust if i in right else cell.ljust for i, cell in enumerate(cells)]
        return "  ".join(side(width) for side, width in zip(sides, widths, strict=True)).rstrip()

    return Text.assemble((f"{title}\n{line(columns)}", "bold"), *(f"\n{line(row)}" for row in rows))
