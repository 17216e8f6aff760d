"""What is compared: runs and files of translations, which must be of one test set, and what is known of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from transloom.jobs.config.compose import read_config, to_dict
from transloom.jobs.runs.model import final_split, model_is_current, steps_of_model, training_of, whole_records
from transloom.jobs.runs.workspace import Run, find_run, stage_folder
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.model.flops import count_parameters, training_flops
from transloom.pipeline.compare.comparison import RunFacts, System
from transloom.pipeline.compare.course import Moment, training_course, validation_course
from transloom.pipeline.data.lines import existing_file, read_lines
from transloom.pipeline.data.prepare import unit_of
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import (
    DEFAULT,
    load_tokenizer,
    refuse_unspaced,
    tokenizer_for,
    tokenizer_of,
)
from transloom.pipeline.files import MANIFEST, hash_of, read_json
from transloom.pipeline.run_folder import CONFIG_FILE, EVALUATION_FOLDER, RESULT_FILE, RUN_RECORD, RUNS_FOLDER
from transloom.pipeline.tasks.build import TaskName, flops_columns, token_columns
from transloom.pipeline.tracking.spool import read_points
from transloom.pipeline.tracking.tracker import flatten

# Settings that say nothing of the model: where it lies, who is told.
NOT_COMPARED = ("name", "output_dir", "resume", "tracking.", "race.", "cluster.address")
HASHES = ("corpus.hash", "tokenizer.hash", "shards.hash")  # tags of a run in MLflow
SHOWN_OF_A_HASH = 12


@dataclass(frozen=True)
class Gathered:
    """Systems with the test set that they are compared on.

    Attributes:
        training_text: target side of the training corpus of the first run; None where there is no run.
        languages: of "source" and "target", where a run says them.
        scored: by system, what its evaluation says, for runs: name of the metric → value, signature.
        runs: by system, the folders of those that are runs.
        tokenize: what BLEU counts as words: the runs' tokenizer, else that of the language.
    """

    systems: list[System]
    references: list[str]
    sources: list[str] | None
    training_text: Path | None
    languages: dict[str, str]
    scored: dict[str, Mapping[str, Any]]
    runs: dict[str, Path]
    tokenize: str = DEFAULT


@dataclass(frozen=True)
class Evaluated:
    """A run with one of its evaluations."""

    run: Run
    folder: Path
    result: Mapping[str, Any]
    corpus: Path

    @property
    def split(self) -> str:
        """The split whose scores are compared."""
        return final_split(self.result)


def find_systems(words: Sequence[str], root: Path) -> dict[str, "Evaluated | Path"]:
    """What the words name: a run, by name or folder; an evaluation's folder; a file of translations.

    Raises:
        UserError: something is missing, is named twice, or is of another task than the others.
    """
    if twice := [word for word in words if list(words).count(word) > 1]:
        raise UserError(f"{twice[0]}: is named twice")
    found = {word: _find(word, root) for word in words}
    tasks = {
        word: one.run.config.task if isinstance(one, Evaluated) else TaskName.translation for word, one in found.items()
    }
    first, *others = tasks
    if other := next((word for word in others if tasks[word] is not tasks[first]), None):
        what = [
            f"{word} is {'a run' if isinstance(found[word], Evaluated) else 'a file'} of task={tasks[word].value}"
            for word in (first, other)
        ]
        raise UserError(f"task: {what[0]}, and {what[1]}; their scores can't be compared")
    return found


def gather(
    found: Mapping[str, Evaluated | Path],
    references: str | None,
    source: str | None,
    train: str | None,
    language: str | None = None,
    tokenize: str | None = None,
) -> Gathered:
    """The translations of runs and files with the test set that they are of.

    Args:
        found: by the word that names it, see `find_systems`.
        references: with `source` and `train` files that the user names; None: those of the first run.
        language: of the references, for BLEU's tokenizer; None: that of the first run.
        tokenize: BLEU's tokenizer, whatever the language.
    Raises:
        UserError: something is missing, or they are not of one test set.
    """
    names = names_of(found)
    evaluated = {names[word]: one for word, one in found.items() if isinstance(one, Evaluated)}
    first = next(iter(evaluated.values()), None)
    if references:
        meant, where = read_text(Path(references)), references
    elif first:
        meant, where = read_text(first.corpus / "test.target"), f"the run {first.run.name}"
    else:
        raise UserError(
            f"references=<file>: name the references, for {next(iter(found))} and the others are files, not runs"
        )
    _refuse_other_signatures(list(evaluated.values()))
    tokenize = _tokenizer(first, language, tokenize, meant, where)
    systems = []
    for word, one in found.items():
        if isinstance(one, Evaluated):
            _refuse_other_references(one, meant, where)
            file, place, facts = one.folder / "test.hypotheses", one.folder, facts_of(one)
        else:
            file, place, facts = one, one, None
        said = read_text(file)
        if len(said) != len(meant):
            raise UserError(f"{file} has {len(said):,} lines, and the references of {where} {len(meant):,}")
        systems.append(System(names[word], str(place), said, facts))
    sources = read_text(Path(source)) if source else read_text(first.corpus / "test.source") if first else None
    if sources is not None and len(sources) != len(meant):
        raise UserError(f"source={source}: has {len(sources):,} lines, and the references {len(meant):,}")
    pair = first.run.config.languages if first else None
    return Gathered(
        systems,
        meant,
        sources,
        existing_file(train) if train else existing_file(first.corpus / "train.target") if first else None,
        dict(zip(("source", "target"), pair, strict=True)) if pair else {},
        {name: one.result["test"] for name, one in evaluated.items()},
        {name: one.run.folder for name, one in evaluated.items()},
        tokenize,
    )


def _tokenizer(
    first: Evaluated | None, language: str | None, tokenize: str | None, references: list[str], where: str
) -> str:
    """BLEU's tokenizer: that of the runs' scores, else `tokenize` or that of the language.

    Raises:
        UserError: another one is asked for than the runs were scored with, a package is missing, or the references have
            no spaces and nothing says their language.
    """
    asked = tokenize or (tokenizer_for(language) if language else None)
    if first:
        own = tokenizer_of(first.result["test"]["bleu"]["signature"])
        if asked not in (None, own):
            key = "evaluate.tokenize" if tokenize else "target_language"
            raise UserError(
                f"{key}: stands for the tokenizer {asked}, and the run {first.run.name} was scored with {own}. Leave "
                f"{key} out, or first: transloom evaluate resume={first.run.name} evaluate.tokenize={asked}"
            )
        asked = own
    asked = asked or DEFAULT
    if not first and not tokenize:
        refuse_unspaced((line.encode() for line in references), asked, where, "for example target_language=zh")
    load_tokenizer(asked)
    return asked


def read_text(path: Path) -> list[str]:
    """The lines of a file.

    Raises:
        UserError: it is missing, empty, or not UTF-8.
    """
    lines = []
    for number, line in enumerate(read_lines(existing_file(path)), 1):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: is not UTF-8. Convert the file first") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"{path}: is empty; there is nothing to compare")
    return lines


def _find(word: str, root: Path) -> "Evaluated | Path":
    with whole_records(word):
        return _find_whole(word, root)


def _find_whole(word: str, root: Path) -> "Evaluated | Path":
    path = Path(word)
    if (path / RESULT_FILE).exists() and (path.absolute().parents[1] / CONFIG_FILE).exists():
        return _evaluated(path.absolute().parents[1], path.absolute(), root)
    is_run = any((folder / CONFIG_FILE).exists() for folder in (root / RUNS_FOLDER / word, path))
    if not is_run and (path.is_file() or Path(f"{word}.gz").is_file()):
        return existing_file(path)
    try:
        folder = find_run(word, root)
    except UserError as error:
        raise UserError(f"{error}. Nor is there a file {word}") from None
    return _evaluated(folder, None, root)


def _evaluated(folder: Path, evaluation: Path | None, root: Path) -> Evaluated:
    run = Run(folder.name, folder, read_config(folder / CONFIG_FILE))
    called = run.name if folder.parent == root / RUNS_FOLDER else str(folder)
    if evaluation is None:
        steps_of_model(run)  # says so where there is nothing to evaluate yet
        evaluation = evaluation_folder(run)
        if evaluation and not model_is_current(run):
            raise UserError(
                f"the run {run.name} has trained on since its model was made: transloom evaluate resume={called}. To "
                f"compare an earlier evaluation, name its folder, in {run.folder / EVALUATION_FOLDER}"
            )
    if evaluation is None or not (evaluation / RESULT_FILE).exists():
        raise UserError(
            f"the run {run.name} has not been evaluated with its own search ({run.config.decode.in_words()}): "
            f"transloom evaluate resume={called}"
        )
    corpus = stage_folder(run.folder, "corpus")
    if not (corpus / MANIFEST).exists():
        raise UserError(f"the run {run.name} was made from {corpus}, which is gone: bring it back, or prepare it again")
    return Evaluated(run, evaluation, _complete(run, evaluation, read_json(evaluation / RESULT_FILE)), corpus)


def _complete(run: Run, evaluation: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result with what those of earlier versions do not say: the search, and how far the training had come."""
    if "search" in result:
        return result
    training, search = run.training, run.config.decode
    is_latest = evaluation == evaluation_folder(run)
    is_last = training is not None and result["steps_averaged"] == steps_of_model(run)
    return result | {
        "search": search.in_words() if is_latest else "?",
        "label": evaluation.name,
        "is_own_search": is_latest,
        "step": training["step"] if training and is_last else max(result["steps_averaged"]),
    }


def names_of(found: Mapping[str, "Evaluated | Path"]) -> dict[str, str]:
    """What the systems are called, each differently, by word: the run's name, the file's, else the word itself."""
    short = {
        word: _name(one) if isinstance(one, Evaluated) else one.name.removesuffix(".gz") for word, one in found.items()
    }
    return {word: name if list(short.values()).count(name) == 1 else word for word, name in short.items()}


def _name(one: Evaluated) -> str:
    """The run's name, with the search where that is not the run's own, and the step where the training does not end
    there."""
    more = [] if one.result["is_own_search"] else [one.result["label"]]
    more += [] if _progress(one) == "ended" else [f"step {one.result['step']}"]
    return f"{one.run.name} ({', '.join(more)})" if more else one.run.name


def _progress(one: Evaluated) -> str:
    """What became of the training after the step that was evaluated."""
    if one.run.training is None:
        return "has not ended"
    last = one.run.training["step"]
    return "ended" if last == one.result["step"] else f"went on to step {last:,}"


def _refuse_other_references(one: Evaluated, references: list[str], where: str) -> None:
    own = read_text(one.corpus / "test.target")
    if hash_of(own) != hash_of(references):
        raise UserError(
            f"the run {one.run.name} was tested on other references than those of {where}: {len(own):,} lines of hash "
            f"{hash_of(own)[:SHOWN_OF_A_HASH]} in {one.corpus / 'test.target'}, not {len(references):,} of "
            f"{hash_of(references)[:SHOWN_OF_A_HASH]}. Scores on different test sets can't be compared; translate one "
            "test set with both models (transloom translate), and compare the files with references=<file>"
        )


def _refuse_other_signatures(evaluated: Sequence[Evaluated]) -> None:
    for first, one in pairwise(evaluated):
        for metric in ("bleu", "chrf"):
            its, others = one.result["test"][metric]["signature"], first.result["test"][metric]["signature"]
            if tokenizer_of(its) != tokenizer_of(others):
                raise UserError(
                    f"the run {one.run.name} was scored as {its}, and the run {first.run.name} as {others}: score one "
                    f"of them by the other's tokenizer, transloom evaluate resume={one.run.name} "
                    f"evaluate.tokenize={tokenizer_of(others)}, and name the evaluation's folder that it tells"
                )
            if its != others:
                raise UserError(
                    f"the run {one.run.name} was scored as {its}, and the run {first.run.name} as {others}: score one "
                    f"of them again, after removing {one.folder} or {first.folder}: transloom evaluate resume=<run>"
                )


def refuse_other_scores(gathered: Gathered, systems: Mapping[str, Any]) -> None:
    """Refuses a run whose translations are not those that its scores are of.

    Args:
        systems: of the comparison.
    """
    for name, scored in gathered.scored.items():
        for metric in ("bleu", "chrf"):
            then, now = scored[metric]["value"], systems[name]["scores"][metric]["score"]
            if abs(then - now) > 0.005:
                where = systems[name]["where"]
                raise UserError(
                    f"{name}: its evaluation says {metric} {then:.2f}, and its translations now have {now:.2f}: they, "
                    f"the references or sacreBLEU were changed. Remove {where} and evaluate again"
                )


def refuse_other_sources(gathered: Gathered) -> None:
    """Refuses runs that translated other sources than those of the comparison."""
    for name, folder in gathered.runs.items():
        file = stage_folder(folder, "corpus") / "test.source"
        if read_text(file) != gathered.sources:
            raise UserError(
                f"comet: the run {name} translated {file}, and that are other sources than those of the comparison. "
                "COMET looks at the sources; leave comet= out, or compare runs of one source"
            )


def facts_of(one: Evaluated) -> RunFacts:
    run, training = one.run, training_of(one.run, one.result["step"])
    record = run.folder / RUN_RECORD
    tags: Mapping[str, str] = read_json(record)["tags"] if record.exists() else {}
    counts = read_json(one.corpus / MANIFEST)["counts"]["splits"]
    files = read_json(one.corpus / MANIFEST)["files"]
    tokenizer = stage_folder(run.folder, "tokenizer") / MANIFEST
    vocabulary: int | None = read_json(tokenizer)["counts"]["vocab_size"] if tokenizer.exists() else None
    points = read_points(run.folder)
    validations = validation_course(points, training["validations"])
    seconds = max(training["seconds"], 1e-9)
    columns = token_columns(run.config.task)
    tokens = {f"{column}_tokens": training[f"{column}_tokens"] for column in columns}
    facts: dict[str, float] = {
        "steps": training["step"],
        "seconds": seconds,
        **tokens,
        f"{columns[-1]}_tokens_per_second": training[f"{columns[-1]}_tokens"] / seconds,
        "workers": training["world_size"],
    }
    if vocabulary:
        facts["parameters"] = count_parameters(run.config.model, vocabulary)
        outputs = len(read_json(one.corpus / MANIFEST)["counts"].get("labels", ())) or vocabulary
        facts["flops"] = _flops(run, outputs, facts)
        validations = [moment | {"flops": _flops(run, outputs, moment)} for moment in validations]
    unit = unit_of({"splits": counts})
    evaluating = one.result["seconds"][one.split]
    evaluated = "sentences" if run.config.languages else unit
    facts[f"{evaluated}_per_second"] = one.result["sentences"][one.split] / max(evaluating, 1e-9)
    hashes = {name: tags[name][:SHOWN_OF_A_HASH] for name in HASHES if name in tags}
    settings = flatten(to_dict(run.config))
    if not one.result["is_own_search"]:
        decode = {f"decode.{key}": str(value) for key, value in one.result.get("decode", {}).items()}
        settings |= {key: decode.get(key, "?") for key in settings if key.startswith("decode.")}
    about = {"machine": tags["environment.machine"]} if "environment.machine" in tags else {}
    versions = ("python", "torch", "ray", "deepspeed", "sentencepiece", "sacrebleu")
    about |= {name: tags[key] for name in versions if (key := f"environment.{name}") in tags}
    if code := tags.get("mlflow.source.git.commit"):
        about["code"] = code[:SHOWN_OF_A_HASH] if re.fullmatch("[0-9a-f]{40}", code) else code
    return RunFacts(
        settings={key: value for key, value in settings.items() if not key.startswith(NOT_COMPARED)},
        data={
            "corpus": run.config.corpus.name,
            **({"languages": "-".join(run.config.languages)} if run.config.languages else {}),
            f"training {unit}": f"{counts['train'][unit]:,}",
            "vocabulary": f"{vocabulary:,} pieces" if vocabulary else "?",
            **hashes,
        },
        environment=about,
        training=facts,
        steps_averaged=one.result["steps_averaged"],
        search=one.result["search"],
        progress=_progress(one),
        validation_set=hash_of([file["sha256"] for name, file in sorted(files.items()) if _is_compared(name)]),
        course=training_course(points),
        validations=validations,
    )


def _is_compared(file: str) -> bool:
    """Whether a corpus's file has what the scores of a validation depend on: references, or documents."""
    return file.startswith("validation.") and file != "validation.source"


def _flops(run: Run, outputs: int, moment: Moment) -> int:
    """Floating-point operations of the training until then.

    Args:
        outputs: the pieces of the vocabulary, or the labels of a classifier.
    """
    tokens = [round(moment[f"{column}_tokens"]) for column in flops_columns(run.config.task, run.config.model)]
    return run.config.train.passes * training_flops(run.config.model, outputs, *tokens)
