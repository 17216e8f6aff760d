"""Compare: which of several runs, or files of translations, is better, whether that is chance, and what differs."""

import math
import multiprocessing
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.pipeline.errors import UserError
from transloom.pipeline.progress import MapTasks
from transloom.pipeline.run_folder import CONFIG_FILE, RUN_RECORD, RUNS_FOLDER

if TYPE_CHECKING:
    from transloom.jobs.compare.report import Told
    from transloom.jobs.compare.systems import Evaluated, Gathered
    from transloom.jobs.config.schema import Config

    Compared = tuple[Path, dict[str, Any], Told, dict[str, Path]]  # folder, comparison, what it says, folders of runs

OWN = ("tests", "references", "source", "train", "target_language", "reach", "query", "comet", "comet_command")
MIN_SENTENCES = 1000  # of all systems; for fewer, processes take longer to start than they save
MAX_PROCESSES = 8


def main(argv: list[str]) -> int:
    started_at = time.monotonic()
    words, own, settings = sort_words(argv, OWN)
    if not words and "query" not in own:
        raise UserError(usage("compare"))
    reach = _number("reach", own["reach"]) if "reach" in own else None
    config = configuration("compare", settings)

    from transloom.jobs.compare.comet import wanted_comet
    from transloom.jobs.compare.report import log_comparison, print_comparison
    from transloom.jobs.compare.systems import Evaluated, find_systems
    from transloom.jobs.config.compose import read_config
    from transloom.jobs.runs.summary import print_next, use_of
    from transloom.jobs.runs.workspace import Run, output_dir
    from transloom.jobs.terminal.console import clock, console
    from transloom.pipeline.tasks.build import TaskName, selecting_metric

    root = output_dir(config)
    wanted_comet(own)  # refuses, before anything is read, what can't score
    if "tests" in own:
        return _compare_on_tests(config, words, own)
    if "query" in own:
        words += [word for word in runs_of_query(config, own["query"], root) if word not in words]
    if len(words) < 2:
        raise UserError(f"there is only {words[0]} to compare; name two at least. {usage('compare')}")
    found = find_systems(words, root)
    first = next(iter(found.values()))
    task = first.run.config.task if isinstance(first, Evaluated) else TaskName.translation
    match task:
        case TaskName.translation:
            compare = _compare_translations
        case TaskName.language_model:
            compare = _compare_documents
        case TaskName.classification:
            compare = _compare_labels
        case TaskName.prompt_response:
            compare = _compare_responses
        case _:
            raise UserError(f"task: compare knows no task={task.value}; its runs' scores are in MLflow: transloom ui")
    folder, comparison, told, runs = compare(config, found, own, reach)
    print_comparison(told, folder)
    if config.tracking.enabled:
        log_comparison(config, folder, comparison, told, runs)
    console.print(f"Took     {clock(time.monotonic() - started_at)}")
    where = [word for word in settings if word.startswith("output_dir=")]
    report = shlex.join(["xdg-open", str(folder / "report.html")])
    ui = f"{shlex.join(['transloom', 'ui', *where])}  # the comparison is a run there"
    metric = selecting_metric(task, first.run.config.corpus if isinstance(first, Evaluated) else None)
    scores = [{"name": name, **_scores_of(comparison, name)} for name in runs]
    best = metric.best(scores)
    use = []
    if best is not None:
        folder_of_best = runs[best["name"]]
        run = Run(folder_of_best.name, folder_of_best, read_config(folder_of_best / CONFIG_FILE))
        use = [use_of(run, shlex.join([run.name, *where]))]
    print_next(report, *([ui] if config.tracking.enabled else []), *use)
    return 0


def _compare_on_tests(config: "Config", words: Sequence[str], own: Mapping[str, str]) -> int:
    """`tests=`: every model translates every test set; a report for each, and one table of all."""
    from transloom.jobs.compare.report import folder_for, log_tests, print_tests, write_translations
    from transloom.jobs.compare.systems import Gathered
    from transloom.jobs.compare.tests import find_models, find_tests, folder_name, translations
    from transloom.jobs.runs.workspace import output_dir
    from transloom.pipeline.compare.comparison import System
    from transloom.pipeline.files import hash_of

    if other := [key for key in own if key != "tests"]:
        raise UserError(f"{other[0]}: does not go with tests=, which names the test sets; leave it out")
    if len(words) < 2:
        raise UserError(f"name two models at least. {usage('compare')}")
    root = output_dir(config)
    models = find_models(words, root)
    run = next((model.run for model in models if model.run), None)
    tests = find_tests(own["tests"], run, config, root)
    search = run.config.decode if run else config.decode
    found = {}
    for test in tests:
        systems = [System(model.name, str(model.folder), translations(model, test, search)) for model in models]
        of_runs = {model.name: model.run.folder for model in models if model.run}
        about = (test.references, test.sources, test.training_text, test.languages, {}, of_runs, test.tokenize)
        gathered = Gathered(systems, *about)
        found[test.name] = gathered, *_compared(gathered, None)
    comparisons = {name: comparison for name, (_, comparison, _) in found.items()}
    first = next(iter(comparisons.values()))
    key = hash_of([one["key"] for one in comparisons.values()])
    folder = folder_for(config, {"names": first["names"], "key": key})
    told = {}
    for test in tests:
        gathered, comparison, scores = found[test.name]
        (folder / folder_name(test.name)).mkdir(exist_ok=True)
        told[test.name] = write_translations(folder / folder_name(test.name), comparison, scores, None, gathered)
    table = print_tests(folder, key, comparisons, told)
    if config.tracking.enabled:
        log_tests(config, folder, comparisons, table, {m.name: m.run.folder for m in models if m.run})
    return 0


def _scores_of(comparison: Mapping[str, Any], name: str) -> dict[str, float]:
    return {metric: one["score"] for metric, one in comparison["systems"][name]["scores"].items()}


def _compare_translations(
    config: "Config", found: "Mapping[str, Evaluated | Path]", own: Mapping[str, str], reach: float | None
) -> "Compared":
    from transloom.jobs.compare.comet import comet_scores, refuse_without_sources, wanted_comet
    from transloom.jobs.compare.report import folder_for, write_translations
    from transloom.jobs.compare.systems import gather

    comet = wanted_comet(own)
    files = own.get("references"), own.get("source"), own.get("train")
    gathered = gather(found, *files, own.get("target_language"), config.evaluate.tokenize)
    if comet:
        refuse_without_sources(gathered)
    comparison, scores = _compared(gathered, reach)
    folder = folder_for(config, comparison)
    by_comet = comet_scores(comet, gathered, comparison, folder) if comet else None
    told = write_translations(folder, comparison, scores, by_comet, gathered)
    return folder, comparison, told, gathered.runs


def _compare_documents(
    config: "Config", found: "Mapping[str, Evaluated | Path]", own: Mapping[str, str], reach: float | None
) -> "Compared":
    from transloom.jobs.compare.documents import gather_documents
    from transloom.jobs.compare.report import folder_for, write_documents
    from transloom.pipeline.compare.documents import compare_documents

    if other := [key for key in own if key not in ("reach", "query")]:
        raise UserError(f"{other[0]}: is about translations, and the runs are language models; leave it out")
    gathered = gather_documents(found)
    comparison = compare_documents(
        gathered.systems, gathered.documents.num_bytes, gathered.split, gathered.hash, gathered.baselines, reach
    )
    folder = folder_for(config, comparison)
    return folder, comparison, write_documents(folder, comparison, gathered), gathered.runs


def _compare_labels(
    config: "Config", found: "Mapping[str, Evaluated | Path]", own: Mapping[str, str], reach: float | None
) -> "Compared":
    from transloom.jobs.compare.labels import gather_labels
    from transloom.jobs.compare.report import folder_for, write_labels
    from transloom.pipeline.compare.labels import compare_labels

    if other := [key for key in own if key not in ("reach", "query")]:
        raise UserError(f"{other[0]}: is about translations, and the runs are classifiers; leave it out")
    gathered = gather_labels(found)
    comparison = compare_labels(gathered.systems, gathered.split, gathered.hash, gathered.baselines, reach)
    folder = folder_for(config, comparison)
    return folder, comparison, write_labels(folder, comparison, gathered), gathered.runs


def _compare_responses(
    config: "Config", found: "Mapping[str, Evaluated | Path]", own: Mapping[str, str], reach: float | None
) -> "Compared":
    from transloom.jobs.compare.report import folder_for, write_responses
    from transloom.jobs.compare.responses import gather_responses
    from transloom.pipeline.compare.responses import compare_responses

    if other := [key for key in own if key not in ("reach", "query")]:
        raise UserError(f"{other[0]}: is about translations, and the runs respond to prompts; leave it out")
    gathered = gather_responses(found)
    about = (gathered.metric, gathered.split, gathered.hash, gathered.baselines, reach)
    comparison = compare_responses(gathered.systems, *about)
    folder = folder_for(config, comparison)
    return folder, comparison, write_responses(folder, comparison, gathered), gathered.runs


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 100:
        raise UserError(f"{key}={value}: must be a score above 0, at most 100")
    return number


def runs_of_query(config: "Config", criteria: str, root: Path) -> list[str]:
    """The names of the runs in the output folder that a filter of MLflow's finds, the oldest first.

    Raises:
        UserError: there is no store, the filter is refused, or it finds no run that is here.
    """
    from transloom.jobs.terminal.console import console
    from transloom.pipeline.files import read_json
    from transloom.pipeline.tracking.address import local_store, tracking_uri
    from transloom.pipeline.tracking.mlflow_store import find_runs

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
    from transloom.jobs.compare.systems import refuse_other_scores
    from transloom.jobs.terminal.console import StatusLine, counter
    from transloom.pipeline.compare.comparison import compare
    from transloom.pipeline.data.lines import read_lines

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
