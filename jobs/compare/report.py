"""Where a comparison goes: its folder with the report, the terminal, and MLflow."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transloom.jobs.compare.documents import (
    GatheredDocuments,
    document_notes,
    document_tables,
    document_verdicts,
    example_table,
)
from transloom.jobs.compare.labels import GatheredLabels, label_examples, label_notes, label_tables, label_verdicts
from transloom.jobs.compare.responses import (
    GatheredResponses,
    response_examples,
    response_notes,
    response_tables,
    response_verdicts,
)
from transloom.jobs.compare.systems import Gathered
from transloom.jobs.compare.tables import metric_of, notes, tables, task_of, verdicts
from transloom.jobs.compare.tests import tests_table
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.console import console, table
from transloom.pipeline.compare.figure import draw_buckets, draw_courses
from transloom.pipeline.compare.report import Picture, Table, write_report
from transloom.pipeline.compare.sentences import most_different
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.run_folder import RUN_RECORD
from transloom.pipeline.tasks.build import TaskName, token_columns
from transloom.pipeline.tracking.uploader import MlflowTracker

RESULT_FILE, REPORT_FILE = "comparison.json", "report.html"
SENTENCES_SHOWN = 50
NAME_CHARS = 40  # of a system, in the folder's name


@dataclass(frozen=True)
class Told:
    """What a comparison says, in sentences and in tables by short names, and its pictures for light pages."""

    verdicts: list[str]
    tables: dict[str, Table]
    pictures: list[Path]


def folder_for(config: Config, comparison: dict[str, Any]) -> Path:
    """The comparison's own folder, named after what is compared.

    Raises:
        UserError: `name` names another comparison, or the folder can't be made.
    """
    names = comparison["names"]
    first, second, *others = [re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-NAME_CHARS:].strip("-.") for name in names]
    more = f"-and-{len(others)}-more" if others else ""
    name = config.name or f"{first}-vs-{second}{more}-{comparison['key'][:6]}"
    folder = output_dir(config) / "comparisons" / name
    known = folder / RESULT_FILE
    if known.exists() and read_json(known)["key"] != comparison["key"]:
        raise UserError(f"name: {folder} has a comparison of others; choose another name=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: can't make the folder {folder}: {error.strerror}. Set output_dir=") from error
    return folder


def write_translations(
    folder: Path,
    comparison: Mapping[str, Any],
    scores: Mapping[str, Sequence[float]],
    comet: Mapping[str, Sequence[float]] | None,
    gathered: Gathered,
) -> Told:
    """Writes comparison.json, the pictures and report.html of a comparison of translations.

    Args:
        scores: each sentence's chrF2, by system. comet: the same of COMET, where it was asked for.
    """
    write_json(folder / RESULT_FILE, comparison)
    made = tables(comparison)
    pictures = _curves(folder, comparison) | {"buckets": _buckets(folder, comparison)}
    order: list[Table | Picture | None] = [
        *(made.get(name) for name in ("scores", "sentences", "translations", "seeds", "runs", "reach")),
        pictures.get("curves"),
        *(made.get(name) for name in ("by_length", "by_frequency")),
        pictures["buckets"],
        *(made.get(name) for name in ("settings", "data", "environment")),
    ]
    said = {system.name: system.hypotheses for system in gathered.systems}
    told = Told(verdicts(comparison), made, [picture.light for picture in pictures.values()])
    write_report(
        folder / REPORT_FILE,
        _title(comparison),
        told.verdicts,
        [part for part in order if part is not None],
        most_different(scores, said, gathered.references, gathered.sources, SENTENCES_SHOWN, comet),
        notes(comparison),
        gathered.languages,
    )
    return told


def write_documents(folder: Path, comparison: Mapping[str, Any], gathered: GatheredDocuments) -> Told:
    """Writes comparison.json, the curves and report.html of a comparison of language models."""
    made, verdicts = document_tables(comparison), document_verdicts(comparison)
    return _write(folder, comparison, made, "documents", example_table(gathered), verdicts, document_notes(comparison))


def write_labels(folder: Path, comparison: Mapping[str, Any], gathered: GatheredLabels) -> Told:
    """Writes comparison.json, the curves and report.html of a comparison of classifiers."""
    made, verdicts = label_tables(comparison), label_verdicts(comparison)
    return _write(folder, comparison, made, None, label_examples(gathered), verdicts, label_notes(comparison))


def write_responses(folder: Path, comparison: Mapping[str, Any], gathered: GatheredResponses) -> Told:
    """Writes comparison.json, the curves and report.html of a comparison of models that respond to prompts."""
    made, verdicts = response_tables(comparison), response_verdicts(comparison)
    examples = response_examples(gathered)
    return _write(folder, comparison, made, "examples", examples, verdicts, response_notes(comparison))


def _write(
    folder: Path,
    comparison: Mapping[str, Any],
    made: dict[str, Table],
    second: str | None,
    examples: Table | None,
    verdicts: list[str],
    notes: list[str],
) -> Told:
    """
    Args:
        made: all tables. second: the name of the table behind the scores, if any. examples: the last table.
    """
    write_json(folder / RESULT_FILE, comparison)
    pictures = _curves(folder, comparison)
    order: list[Table | Picture | None] = [
        *(made.get(name) for name in ("scores", *([second] if second else []), "seeds", "runs", "reach")),
        pictures.get("curves"),
        *(made.get(name) for name in ("settings", "data", "environment")),
        examples,
    ]
    told = Told(verdicts, made, [picture.light for picture in pictures.values()])
    parts = [part for part in order if part is not None]
    write_report(folder / REPORT_FILE, _title(comparison), told.verdicts, parts, None, notes, {})
    return told


def _title(comparison: Mapping[str, Any]) -> str:
    names = comparison["names"]
    return f"{' and '.join(names) if len(names) == 2 else f'{len(names)} systems'} compared"


def _curves(folder: Path, comparison: Mapping[str, Any]) -> dict[str, Picture]:
    """The picture of the trainings, as "curves"; nothing where there are none of one validation set."""
    runs = {name: one for name, one in comparison["systems"].items() if one["validations"]}
    if not runs or not comparison["same_validation_set"]:
        return {}
    task = task_of(comparison)
    metric, column = metric_of(comparison), token_columns(task)[-1]
    tokenizers = {name: set(row["values"].values()) for row in comparison["data"] if (name := row["name"])}
    # Losses are of a token each, which says nothing where tokens differ.
    of_examples = task in (TaskName.translation, TaskName.classification)
    with_losses = of_examples or len(tokenizers.get("tokenizer.hash", ())) == 1
    draw = partial(draw_courses, runs, metric=metric, column=column, with_losses=with_losses)
    what = "loss and " if with_losses else ""
    picture = Picture(
        "Curves",
        draw(folder / "curves.png"),
        draw(folder / "curves-dark.png", dark=True),
        f"Curves of {what}validation {metric.title} against steps, {column} tokens and time; their numbers: "
        f"{RESULT_FILE}.",
    )
    return {"curves": picture}


def _buckets(folder: Path, comparison: Mapping[str, Any]) -> Picture:
    return Picture(
        "Lengths and rare words",
        draw_buckets(comparison, folder / "buckets.png"),
        draw_buckets(comparison, folder / "buckets-dark.png", dark=True),
        "Bars of BLEU by sentence length and of F1 by word frequency; the tables above have the numbers.",
    )


def print_comparison(told: Told, folder: Path) -> None:
    for part in told.tables.values():
        right = tuple(column for column in range(len(part.columns)) if column not in part.text)
        if part.rows:
            console.print(table(f"\n{part.title}", part.columns, part.rows, right=right))
            if part.note:
                console.print(part.note)
        else:
            console.print(f"\n{part.title}: {part.note}")
    console.print()
    for verdict in told.verdicts:
        console.print(verdict, style="bold")
    console.print(f"\nReport   {folder / REPORT_FILE}\nFigures  {folder / RESULT_FILE}")


def print_tests(
    folder: Path, key: str, comparisons: Mapping[str, Mapping[str, Any]], told: Mapping[str, Told]
) -> Table:
    """Writes comparison.json of several test sets, and prints their table, which it returns, and what each of them
    says."""
    write_json(folder / RESULT_FILE, {"key": key, "tests": comparisons, "order": list(comparisons)})
    scores = tests_table(comparisons)
    right = tuple(range(1, len(scores.columns)))
    console.print(table(f"\n{scores.title}", scores.columns, scores.rows, right=right))
    console.print(f"{scores.note}\n")
    for name, of_this in told.items():
        for verdict in of_this.verdicts:
            console.print(f"{name}: {verdict}", style="bold")
    console.print(f"\nReports  {folder}/*/{REPORT_FILE}\nFigures  {folder / RESULT_FILE}")
    return scores


def log_tests(
    config: Config,
    folder: Path,
    comparisons: Mapping[str, Mapping[str, Any]],
    scores: Table,
    runs: Mapping[str, Path],
) -> None:
    """A comparison on several test sets as a run of MLflow's: the table, each score, and which runs it is of."""
    tracking = dataclasses.replace(config.tracking, system_metrics=False)
    tracker = MlflowTracker(tracking, output_dir(config), folder, f"compare {folder.name}", {"kind": "comparison"})
    tracker.set_tags(_compared_runs(runs))
    first = next(iter(comparisons.values()))
    tests = {"tests": ", ".join(comparisons)}
    tracker.log_params({"baseline": first["baseline"], "systems": ", ".join(first["names"]), **tests})
    for test, comparison in comparisons.items():
        for name, one in comparison["systems"].items():
            label = "/".join(re.sub(r"[^\w.-]+", "_", part) for part in (test, name))
            tracker.log_metrics({f"{metric}/{label}": its["score"] for metric, its in one["scores"].items()}, 0)
    cells = zip(*scores.rows, strict=True)
    tracker.log_table(dict(zip(scores.columns, map(list, cells), strict=True)), "scores")
    tracker.log_artifact(folder / RESULT_FILE)
    for report in sorted(folder.glob(f"*/{REPORT_FILE}")):
        tracker.log_artifact(report, report.parent.name)
    tracker.close("FINISHED")


def _compared_runs(runs: Mapping[str, Path]) -> dict[str, str]:
    """Tags with the names of the runs, and with their ids in MLflow."""
    tags = {}
    for place, (name, run) in enumerate(runs.items()):
        record = run / RUN_RECORD
        run_id = read_json(record)["run_id"] if record.exists() else None
        tags[f"compared.{place}"] = f"{name} ({run_id})" if run_id else name
    return tags


def log_comparison(
    config: Config, folder: Path, comparison: Mapping[str, Any], told: Told, runs: Mapping[str, Path]
) -> None:
    """The comparison as a run of MLflow's: its table, report, figures, and which runs it is of.

    Args:
        runs: the folders of those systems that are runs.
    """
    tracking = dataclasses.replace(config.tracking, system_metrics=False)
    tracker = MlflowTracker(tracking, output_dir(config), folder, f"compare {folder.name}", {"kind": "comparison"})
    scores = told.tables["scores"]
    said = "\n".join(f"- {verdict}" for verdict in told.verdicts)
    note = {"mlflow.note.content": f"{said}\n\nEverything is in the artifact {REPORT_FILE}."}
    tracker.set_tags(note | _compared_runs(runs))
    params = {"baseline": comparison["baseline"], "systems": ", ".join(comparison["systems"])}
    tracker.log_params(params | {name: its for name, its in comparison["signatures"].items() if name == "comet"})
    for name, one in comparison["systems"].items():
        label = re.sub(r"[^\w.-]+", "_", name)
        tracker.log_metrics({f"{metric}/{label}": its["score"] for metric, its in one["scores"].items()}, 0)
    cells = list(zip(*scores.rows, strict=True))
    tracker.log_table(dict(zip(scores.columns, map(list, cells), strict=True)), "scores")
    for file in (folder / REPORT_FILE, folder / RESULT_FILE):
        tracker.log_artifact(file)
    for picture in told.pictures:
        tracker.log_figure(picture)
    if tracker.close("FINISHED"):
        console.print(f"MLflow   the run “compare {folder.name}”: {REPORT_FILE} and more are among its artifacts")
