"""A translator on any test set: `transloom evaluate <run> on=…`. The run's own test scores stay as they are."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.jobs.compare.systems import read_text
from transloom.jobs.compare.tests import find_tests, folder_name
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.language_model import terminal_progress
from transloom.jobs.runs.model import computing_device, find_model, in_words, run_of, tell_other_precision
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import Run, find_run, only_owner, output_dir, own_search
from transloom.jobs.terminal.console import console, table
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.tokenizers import tokenizer_for
from transloom.pipeline.evaluate.wmt import files_of, is_known
from transloom.pipeline.files import atomic_write, hash_of, read_json, write_json
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.model_folder import read_about
from transloom.pipeline.run_folder import DRIVER_SPOOL, HYPOTHESES_FILE, RESULT_FILE, TESTS_FOLDER
from transloom.pipeline.tasks.build import TaskName
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tracking.run_page import sync_run
from transloom.pipeline.tracking.tracker import SpoolTracker

COPY = "copied source"  # the baseline: what a translator is worth that changes nothing


@dataclass(frozen=True)
class References:
    """A test set; `references` has a list of lines for each translator, at least one."""

    name: str
    sources: list[str]
    references: list[list[str]]


def evaluate_on(word: str, on: str, config: Config, has_search: bool) -> None:
    """Translates a test set, prints its scores, and logs them to MLflow under their own names, if the model is a run's
    and tracking is on.

    Args:
        word: the run or model folder. on: see `find_references`.
        has_search: whether the command names the search; otherwise a run's own counts.
    Raises:
        UserError: the model or the test set is missing, or is none of translations.
    """
    folder = find_model(word, output_dir(config))
    run = run_of(folder)
    about = read_about(folder)
    if about.get("task", TaskName.translation.value) != TaskName.translation.value:
        raise UserError(f"on: test sets are of translations, and {word} is of task={about['task']}")
    test = find_references(on, about, config, output_dir(config))
    search = config.decode if has_search or run is None else own_search(run)
    tokenize = tokenizer_for(about.get("target_language") or "", config.evaluate)
    result, hypotheses = _evaluate(folder, test, search, tokenize, about)
    _print(result, word)
    if run is None:
        return
    result["name"] = _own_name(run, test.name, result["test_sha256"])
    kept = _keep(run, folder, test, result, hypotheses)
    console.print(f"\nTranslations  {kept / HYPOTHESES_FILE}")
    if config.tracking.enabled:
        with only_owner(run):
            _log(run, test, result, hypotheses, kept)
            sync_run(run.folder, config.tracking.uri)
        print_next("transloom ui")


def find_references(on: str, about: Mapping[str, Any], config: Config, root: Path) -> References:
    """The test set that `on=` names: <source>,<reference>[,<reference>…], or as one of `compare … tests=` a run or
    <source>:<reference>, or sacreBLEU's name of one.

    Args:
        about: of the model, whose languages a test set of sacreBLEU's is for.
    Raises:
        UserError: there is no such test set, or its sides have unequal numbers of lines.
    """
    files = [part for part in on.split(",") if part]
    if len(files) > 1:
        return _of_files(Path(files[-1]).name if len(files) == 2 else Path(files[0]).name, files[0], files[1:])
    if not files:
        raise UserError("on: is empty; give <source>,<reference>, a run, or a test set of sacreBLEU's such as wmt24")
    if ":" in on or not is_known(on) or _is_run(on, root):
        if ":" not in on and not _is_run(on, root):
            raise UserError(
                f"on: {on} is neither a run nor a test set of sacreBLEU's; of files give <source>,<reference>"
            )
        (test,) = find_tests(on, None, config, root)
        return References(test.name, test.sources, [test.references])
    pair = [about.get(f"{side}_language") for side in ("source", "target")]
    if not all(pair):
        raise UserError(f"on: the model does not say its languages, which {on} is asked for; give <source>,<reference>")
    source, references = files_of(on, str(pair[0]), str(pair[1]))
    return _of_files(on, str(source), [str(file) for file in references])


def _is_run(name: str, root: Path) -> bool:
    try:
        find_run(name, root)
    except UserError:
        return False
    return True


def _of_files(name: str, source: str, references: list[str]) -> References:
    sources = read_text(Path(source))
    lists = [read_text(Path(file)) for file in references]
    for file, lines in zip(references, lists, strict=True):
        if len(lines) != len(sources):
            raise UserError(f"on: {source} has {len(sources):,} lines, and {file} {len(lines):,}")
    return References(name, sources, lists)


def _evaluate(
    folder: Path, test: References, search: BeamConfig, tokenize: str, about: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    from transloom.pipeline.generate.translator import Translator

    device, dtype = computing_device()
    translator = Translator.load(folder, device, dtype)
    tell_other_precision(dtype, about.get("precision"))
    count = 0
    with terminal_progress() as progress:

        def done(finished: int) -> None:
            nonlocal count
            count += finished
            progress("translating, lines", min(count, len(test.sources) - 1), len(test.sources))

        hypotheses = translator.translate(test.sources, search, done=done)
    first, *more = test.references
    scores = score(hypotheses, first, in_full=True, tokenize=tokenize, more_references=more)
    copied = score(test.sources, first, tokenize=tokenize, more_references=more)
    result = {
        "test_set": test.name,
        "test_sha256": hash_of([test.sources, test.references]),
        "sentences": len(test.sources),
        "references": len(test.references),
        "scores": {name: dataclasses.asdict(one) for name, one in scores.items()},
        "baselines": {COPY: {name: one.value for name, one in copied.items()}},
        "search": search.in_words(),
        "label": search.label(),
        "decode": dataclasses.asdict(search),
        "steps_averaged": about.get("steps", []),
    }
    return result, hypotheses


def _print(result: Mapping[str, Any], word: str) -> None:
    baseline = result["baselines"][COPY]
    rows = []
    for name, one in result["scores"].items():
        value = f"{one['value']:.2f}" + (f" ± {one['half_width']:.2f}" if one.get("half_width") is not None else "")
        rows.append([name, value, f"{baseline[name]:.2f}" if name in baseline else "", one["signature"] or ""])
    steps = f", average of steps {in_words(result['steps_averaged'])}" if result["steps_averaged"] else ""
    title = f"{word} on {result['test_set']}: {result['sentences']:,} sentences, {result['search']}{steps}"
    console.print(table(title, ["score", "value", COPY, "signature"], rows, right=(1, 2)))


def _keep(run: Run, model: Path, test: References, result: Mapping[str, Any], hypotheses: list[str]) -> Path:
    """Writes the translations and the result into the run's folder; returns where."""
    key = hash_of({"model": read_about(model)["sha256"], "decode": result["decode"], "test": dataclasses.asdict(test)})
    folder = run.folder / TESTS_FOLDER / f"{folder_name(test.name)}-{key[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / HYPOTHESES_FILE) as file:
        file.write("".join(f"{line}\n" for line in hypotheses).encode())
    write_json(folder / RESULT_FILE, result)
    return folder


def _own_name(run: Run, test_set: str, digest: str) -> str:
    """The name of a test set's scores in MLflow: the test set's, but with the digest where another one of that name was
    there first."""
    name = folder_name(test_set)
    kept = [read_json(file) for file in sorted((run.folder / TESTS_FOLDER).glob(f"{name}-*/{RESULT_FILE}"))]
    alike = [found for found in kept if folder_name(found["test_set"]) == name]
    for found in alike:
        if found.get("test_sha256", digest) == digest:
            return found.get("name", name)
    return f"{name}-{digest[:8]}" if alike else name


def _log(run: Run, test: References, result: Mapping[str, Any], hypotheses: list[str], folder: Path) -> None:
    from transloom.jobs.runs.report import names_apart  # imports matplotlib, which takes a second

    is_own = result["label"] == own_search(run).label()
    step = max(result["steps_averaged"], default=0)
    ended = run.training is not None
    apart = names_apart({"is_own_search": is_own, "label": result["label"], "training_ended": ended, "step": step})
    name, digest = f"on_{result['name']}{apart}", result["test_sha256"]
    tracker = SpoolTracker(run.folder, DRIVER_SPOOL)
    tracker.log_dataset(test.name, digest, str(folder), {"sentences": len(test.sources)}, "test")
    scores = {f"{name}/{key}": round(one["value"], 2) for key, one in result["scores"].items()}
    baseline = {f"{name}/{key}_of_copied_source": round(value, 2) for key, value in result["baselines"][COPY].items()}
    tracker.log_metrics(scores | baseline, 0, None, (test.name, digest))
    signatures = {f"{name}.signature.{key}": one["signature"] or "" for key, one in result["scores"].items()}
    tracker.set_tags(
        signatures | {f"{name}.steps": in_words(result["steps_averaged"]), f"{name}.search": result["search"]}
    )
    columns = {"source": test.sources, "reference": test.references[0], "translation": hypotheses}
    places = sample_places(len(hypotheses))
    tracker.log_table({key: [lines[i] for i in places] for key, lines in columns.items()}, f"{name}_samples")
    for file in (HYPOTHESES_FILE, RESULT_FILE):
        tracker.log_artifact(folder / file, name)
    tracker.close()
