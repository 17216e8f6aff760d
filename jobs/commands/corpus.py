"""Corpus: what a parallel corpus is like, before anything is trained on it."""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transloom.jobs.cli import configuration
from transloom.jobs.config.schema import Config, pairs_of
from transloom.jobs.ray_cluster.preflight import checked_session
from transloom.jobs.ray_cluster.session import map_over_cluster
from transloom.jobs.runs.summary import print_cleaning_of, print_next
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.console import StatusLine, console, counter, table
from transloom.jobs.training.prepare import with_local_data
from transloom.pipeline.data.corpus_report import BINS, report_corpus
from transloom.pipeline.data.prepare import prepare_corpus
from transloom.pipeline.files import NotBuilt, Stage, write_json
from transloom.pipeline.progress import MapTasks

LARGE_CORPUS = 100_000  # pairs; fewer are measured here sooner than Ray starts


def main(argv: list[str]) -> int:
    config = configuration("corpus", argv)
    pairs_of(config, "corpus")
    local = with_local_data(config)
    is_built, is_large = _look(local)
    with checked_session(config) if is_large or not is_built else nullcontext():
        map_tasks = map_over_cluster if is_large or not is_built else map
        stage, report = _with_progress(lambda progress: _measure(local, map_tasks, progress))
    folder = output_dir(config) / "reports" / stage.folder.name
    counts = stage.manifest["counts"]
    print_cleaning_of(stage, pairs_of(config, "corpus"))
    _print_report(report, counts)
    from transloom.pipeline.figures.corpus import draw_corpus

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "corpus.json", {"report": report, "counts": counts})
    picture = draw_corpus(report, counts, pairs_of(config, "corpus").languages, folder / "corpus.png")
    console.print(f"\nCorpus       {stage.folder}\nNumbers      {folder / 'corpus.json'}\nPicture      {picture}")
    print_next(shlex.join(["transloom", "prepare", *argv]))
    return 0


def _look(config: Config) -> tuple[bool, bool]:
    """Whether the corpus is cleaned already, and whether it is large."""
    try:
        stage = prepare_corpus(pairs_of(config, "corpus"), config.clean, output_dir(config), only_find=True)
    except NotBuilt:
        return False, False
    return True, stage.manifest["counts"]["splits"]["train"]["pairs"] > LARGE_CORPUS


def _measure(config: Config, map_tasks: MapTasks, progress: Callable[..., None]) -> tuple[Stage, dict[str, Any]]:
    stage = prepare_corpus(pairs_of(config, "corpus"), config.clean, output_dir(config), map_tasks, progress)
    root = output_dir(config) / "reports"
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="measure-", dir=root))
    try:
        return stage, report_corpus(stage.folder, stage.manifest["counts"], work, map_tasks, progress)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _with_progress(function: Callable[[Any], Any]) -> Any:
    status = StatusLine()
    try:
        return function(counter(status))
    finally:
        status.clear()


def _print_report(report: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    rows = []
    for split, of_split in report.items():
        for side in ("source", "target"):
            words, longest = of_split["words"][side], of_split["longest"][side]
            each = f"{words / max(1, of_split['pairs']):.1f}"
            letters = max(1, sum(of_split["scripts"][side].values()))
            scripts = [f"{name} {count / letters:.2%}" for name, count in of_split["scripts"][side].items() if count]
            numbers = (f"{of_split['pairs']:,}", f"{words:,}", each, f"{longest:,}")
            rows.append([f"{split} {side}", *numbers, ", ".join(scripts[:4])])
    heads = ["split", "sentences", "words", "words each", "longest", "scripts of the letters"]
    console.print(table("\nSplits", heads, rows, right=(1, 2, 3, 4)))
    rows = [[split, f"{part['duplicates']:,}", f"{part['near_duplicates']:,}"] for split, part in report.items()]
    title = "\nRepeated pairs (near: but for case, digits, punctuation and accents)"
    console.print(table(title, ["split", "equal", "equal or near"], rows, right=(1, 2)))
    test, shared = counts["splits"]["test"]["pairs"], counts.get("test_in_validation", 0)
    console.print(
        f"\nOverlap      {counts.get('contaminated', 0):,} pairs of train with a sentence of validation or test; "
        f"{shared:,} of {test:,} test pairs with one of validation"
    )
    _print_lengths(report["train"])
    console.print("\nSample of train", style="bold")
    for source, target in report["train"]["sample"]:
        console.print(f"  {source}\n  {target}\n")


def _print_lengths(train: Mapping[str, Any]) -> None:
    """A histogram of the lengths of either side."""
    most = max(1, *train["lengths"]["source"], *train["lengths"]["target"])
    rows = []
    for i, low in enumerate(BINS):
        name = f"{low}+" if i + 1 == len(BINS) else f"{low}" if BINS[i + 1] == low + 1 else f"{low}-{BINS[i + 1] - 1}"
        source, target = (train["lengths"][side][i] for side in ("source", "target"))
        bars = ["█" * round(24 * count / most) for count in (source, target)]
        rows.append([name, f"{source:,}", bars[0], f"{target:,}", bars[1]])
    heads = ["words", "source", "", "target", ""]
    console.print(table("\nLengths of train", heads, rows, right=(1, 3)))
