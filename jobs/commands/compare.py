"""Compare: which of several runs, or files of translations, is better, whether that is chance, and what differs."""

import math
import multiprocessing
import os
import shlex
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import configuration, sort_words, usage
from pipeline.errors import UserError
from pipeline.progress import MapTasks
from pipeline.run_folder import RUN_RECORD, RUNS_FOLDER

if TYPE_CHECKING:
    from jobs.compare.systems import Gathered
    from jobs.config.schema import Config

OWN = ("references", "source", "train", "target_language", "reach", "query", "comet", "comet_command")
MIN_SENTENCES = 1000  # of all systems; for fewer, processes take longer to start than they save
MAX_PROCESSES = 8


def main(argv: list[str]) -> int:
    started_at = time.monotonic()
    words, own, settings = sort_words(argv, OWN)
    if not words and "query" not in own:
        raise UserError(usage("compare"))
    reach = _number("reach", own["reach"]) if "reach" in own else None
    config = configuration("compare", settings)

    from jobs.compare.comet import comet_scores, refuse_without_sources, wanted_comet
    from jobs.compare.report import folder_for, log_comparison, print_comparison, write_comparison
    from jobs.compare.systems import gather
    from jobs.runs.summary import print_next
    from jobs.runs.workspace import output_dir
    from jobs.terminal.console import clock, console

    root = output_dir(config)
    comet = wanted_comet(own)
    if "query" in own:
        words += [word for word in runs_of_query(config, own["query"], root) if word not in words]
    if len(words) < 2:
        raise UserError(f"there is only {words[0]} to compare; name two at least. {usage('compare')}")
    files = own.get("references"), own.get("source"), own.get("train")
    gathered = gather(words, root, *files, own.get("target_language"), config.evaluate.tokenize)
    if comet:
        refuse_without_sources(gathered)
    comparison, scores = _compared(gathered, reach)
    folder = folder_for(config, comparison)
    by_comet = comet_scores(comet, gathered, comparison, folder) if comet else None
    pictures = write_comparison(folder, comparison, scores, by_comet, gathered)
    print_comparison(comparison, folder)
    if config.tracking.enabled:
        log_comparison(config, folder, comparison, pictures, gathered)
    console.print(f"Took     {clock(time.monotonic() - started_at)}")
    bleu = {name: comparison["systems"][name]["scores"]["bleu"]["score"] for name in gathered.runs}
    where = [word for word in settings if word.startswith("output_dir=")]
    report = shlex.join(["xdg-open", str(folder / "report.html")])
    ui = f"{shlex.join(['transloom', 'ui', *where])}  # the comparison is a run there"
    best = gathered.runs[max(bleu, key=bleu.__getitem__)].name if bleu else ""
    translate = f"{shlex.join(['transloom', 'translate', best, *where])} < your_text"
    print_next(report, *([ui] if config.tracking.enabled else []), *([translate] if best else []))
    return 0


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 100:
        raise UserError(f"{key}={value}: must be a BLEU above 0, at most 100")
    return number


def runs_of_query(config: "Config", criteria: str, root: Path) -> list[str]:
    """The names of the runs in the output folder that a filter of MLflow's finds, the oldest first.

    Raises:
        UserError: there is no store, the filter is refused, or it finds no run that is here.
    """
    from jobs.terminal.console import console
    from pipeline.files import read_json
    from pipeline.tracking.mlflow_store import find_runs
    from pipeline.tracking.uploader import local_store, tracking_uri

    uri = tracking_uri(config.tracking, root)
    if uri == local_store(root) and not (root / "mlflow.db").exists():
        raise UserError(f"query: there is no MLflow store in {root}; name the runs, or give tracking.uri=")
    here = {read_json(path)["run_id"]: path.parent.name for path in root.glob(f"{RUNS_FOLDER}/*/{RUN_RECORD}")}
    found = find_runs(uri, config.tracking.experiment, criteria)
    # Races, benches and comparisons are runs of MLflow's, too.
    missing = [name for run_id, name in found if run_id not in here]
    if missing:
        console.print(f"Left out, for they are not in {root / RUNS_FOLDER}: {', '.join(missing)}")
    names = [here[run_id] for run_id, _ in found if run_id in here]
    if not names:
        raise UserError(f"query={criteria}: finds no run that is in {root / RUNS_FOLDER}")
    return names


def _compared(gathered: "Gathered", reach: float | None) -> tuple[dict[str, Any], dict[str, list[float]]]:
    from jobs.compare.systems import refuse_other_scores
    from jobs.terminal.console import StatusLine, counter
    from pipeline.compare.comparison import compare
    from pipeline.data.lines import read_lines

    text = gathered.training_text
    training = (line.decode(errors="replace") for line in read_lines(text)) if text else None
    status = StatusLine()
    try:
        with _mapping(len(gathered.references) * len(gathered.systems)) as map_tasks:
            systems, references, tokenize = gathered.systems, gathered.references, gathered.tokenize
            found = compare(systems, references, training, reach, map_tasks, counter(status), tokenize)
    finally:
        status.clear()
    refuse_other_scores(gathered, found[0]["systems"])
    return found


@contextmanager
def _mapping(sentences: int) -> Iterator[MapTasks]:
    """`map`, spread over this machine's processors where there is enough to do."""
    processes = min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if processes == 1 or sentences < MIN_SENTENCES:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # not forked: torch has threads by now
    ignore = (
        signal.signal,
        (signal.SIGINT, signal.SIG_IGN),
    )  # Ctrl-C is the command's, which waits for them
    with ProcessPoolExecutor(processes, context, *ignore) as pool:
        yield pool.map
