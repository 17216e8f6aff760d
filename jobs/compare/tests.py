"""Translation models on several test sets: each model translates each of them, so that a new domain's gain stands
beside the old one's loss."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.jobs.compare.systems import read_text
from transloom.jobs.compare.tables import NAMES, p_in_words
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.model import computing_device, find_model, run_of, tell_other_precision
from transloom.jobs.runs.workspace import Run, find_run, stage_folder
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.pipeline.compare.report import Table
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import tokenizer_for
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.run_folder import RESULT_FILE
from transloom.pipeline.tasks.build import TaskName


@dataclass(frozen=True)
class TestSet:
    """Sources with their references.

    Attributes:
        training_text: target side of the training corpus of the run whose test set it is; None of files.
        languages: of "source" and "target".
        tokenize: what BLEU counts as words.
    """

    __test__ = False  # no test of pytest's

    name: str
    sources: list[str]
    references: list[str]
    training_text: Path | None
    languages: dict[str, str]
    tokenize: str


def find_tests(value: str, model: Run | None, config: Config, root: Path) -> list[TestSet]:
    """The test sets that `tests=` names, separated by commas: a run, whose corpus has one, or <sources>:<references>.

    Args:
        model: the first run that is compared, whose target language is that of files; None: config's.
    Raises:
        UserError: a run or file is missing, the sides have unequal numbers of lines, or a test set is named twice.
    """
    tests: list[TestSet] = []
    for part in filter(None, value.split(",")):
        source, colon, target = part.partition(":")
        if colon:
            about = model.config if model else config
            files, training, name = (Path(source), Path(target)), None, Path(target).name
        else:
            run = _run(part, root)
            corpus = stage_folder(run.folder, "corpus")
            about, files = run.config, (corpus / "test.source", corpus / "test.target")
            training, name = corpus / "train.target", run.config.corpus.name
        if not (pair := about.languages):
            raise UserError(f"tests: {part} is of task={about.task.value}; test sets are of translations")
        sources, references = map(read_text, files)
        if len(sources) != len(references):
            raise UserError(f"tests: {files[0]} has {len(sources):,} lines, and {files[1]} {len(references):,}")
        tokenize = tokenizer_for(pair[1], config.evaluate)
        languages = {"source": pair[0], "target": pair[1]}
        if any(test.name == name for test in tests):
            name = part
        if same := [test.name for test in tests if (test.sources, test.references) == (sources, references)]:
            raise UserError(f"tests: {part} is the test set of {same[0]} again; name each once")
        tests.append(TestSet(name, sources, references, training, languages, tokenize))
    if not tests:
        raise UserError("tests: is empty; name runs, or <sources>:<references>, separated by commas")
    return tests


def _run(name: str, root: Path) -> Run:
    from transloom.jobs.config.compose import read_config
    from transloom.pipeline.run_folder import CONFIG_FILE

    try:
        folder = find_run(name, root)
    except UserError as error:
        raise UserError(f"tests: {error}") from error
    return Run(folder.name, folder, read_config(folder / CONFIG_FILE))


@dataclass(frozen=True)
class Model:
    """A translation model that is compared; `run` is None for a copied model folder."""

    name: str
    folder: Path
    run: Run | None


def find_models(words: Sequence[str], root: Path) -> list[Model]:
    """The models that the words name: runs or model folders.

    Raises:
        UserError: one is missing, named twice, or no translator.
    """
    if twice := [word for word in words if list(words).count(word) > 1]:
        raise UserError(f"{twice[0]}: is named twice")
    models = []
    for word in words:
        folder = find_model(word, root)
        run = run_of(folder)
        if run and run.config.task is not TaskName.translation:
            raise UserError(f"{word}: is a run of task={run.config.task.value}; tests= compares translators")
        models.append(Model(run.name if run else folder.absolute().name, folder, run))
    names = [model.name for model in models]
    return [
        model if names.count(model.name) == 1 else Model(word, model.folder, model.run)
        for word, model in zip(words, models, strict=True)
    ]


def translations(model: Model, test: TestSet, search: BeamConfig) -> list[str]:
    """A model's translations of a test set: from the run's evaluation where that is of these sources, else made here.

    Args:
        search: of a copied model; a run has its own.
    """
    if model.run:
        search = model.run.config.decode
        evaluation = evaluation_folder(model.run)
        own = stage_folder(model.run.folder, "corpus") / "test.source"
        if evaluation and (evaluation / RESULT_FILE).exists() and own.exists() and read_text(own) == test.sources:
            return read_text(evaluation / "test.hypotheses")
    from transloom.pipeline.generate.translator import Translator

    device, dtype = computing_device()
    translator = Translator.load(model.folder, device, dtype)
    tell_other_precision(dtype, translator.about.get("precision"))
    return translator.translate(test.sources, search)


def tests_table(comparisons: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each model and a score on each test set, with the difference to the first model and its p-value.

    Args:
        comparisons: by the test set's name, of the same systems.
    """
    first = next(iter(comparisons.values()))
    columns = ["system"]
    for name in comparisons:
        columns += [f"{name} {NAMES['bleu']}", f"{name} difference", f"{name} p"]
    rows = []
    for system in first["names"]:
        row = [system]
        for comparison in comparisons.values():
            bleu = comparison["systems"][system]["scores"]["bleu"]
            row.append(f"{bleu['score']:.2f}")
            is_baseline = system == comparison["baseline"]
            row += ["", ""] if is_baseline else [f"{bleu['difference']:+.2f}", p_in_words(bleu["p_holm"])]
        rows.append(row)
    note = (
        f"Differences are to {first['baseline']}. p is of paired approximate randomisation on that test set, corrected "
        "for the number of systems by Holm's method."
    )
    return Table("Scores by test set", columns, rows, note)


def folder_name(name: str) -> str:
    """A test set's name as that of a folder, and in names of scores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "test"
