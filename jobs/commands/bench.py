"""Bench: what the orchestration costs, and how training and decoding compare with what is usually used.

All on this machine: contenders are processes that stay alive and take turns. Each turn is kept when it has ended, so a
bench that is stopped shows what it has, and the same command goes on from there.
"""

import dataclasses
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transloom.jobs.bench.summary import machine, print_bench, report_bench
from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.config.compose import recorded
from transloom.jobs.config.schema import Config, pairs_of
from transloom.jobs.runs.model import find_model
from transloom.jobs.runs.report import code_revision
from transloom.jobs.runs.stopping import ended_by_sigterm
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import locked, output_dir, stage_folder, user_of
from transloom.jobs.terminal.console import StatusLine, clock, console
from transloom.jobs.training.precision import warn_of_slow_precision, with_precision
from transloom.pipeline.bench.config import BenchConfig, Part
from transloom.pipeline.bench.kept import Kept, begin, changes, go_on, stopped_bench
from transloom.pipeline.bench.length_picture import draw_lengths
from transloom.pipeline.bench.picture import draw_bench
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import load_tokenizer, tokenizer_for
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.progress import Progress
from transloom.pipeline.run_folder import MODEL_CONFIG, MODEL_FOLDER, PREPARED_FILE
from transloom.pipeline.tasks.build import TaskName

OWN = [field.name for field in dataclasses.fields(BenchConfig)]
RESULT_FILE, FIGURE_FILE, WEIGHTS_FILE = "bench.json", "bench.png", "weights.safetensors"
LENGTH_EXPERIMENT = "long_context/full_1k"
WITHOUT_EFFECT = ("name", "output_dir", "storage", "tracking", "resume")  # settings that no figure depends on


def main(argv: list[str]) -> int:
    from transloom.jobs.bench.contenders import refuse_unlike
    from transloom.jobs.training.prepare import found_prepared

    bench, folders, settings = _sort(argv)
    config = configuration("bench", settings)
    if bench.part is Part.length:
        return _bench_lengths(bench, folders, config)
    if len(folders) > 1:
        raise UserError(usage("bench"))
    if config.cluster.address:
        raise UserError("cluster.address: the bench measures this machine, with contenders of its own; leave it out")
    if bench.part is Part.decode and not folders:
        raise UserError("part=decode: needs a model; give a run or a model folder, or leave part= out")
    if bench.part is Part.train and folders:
        raise UserError(f"part=train: measures no decoding, and {folders[0]} is to decode with; leave one of them out")
    refuse_unlike(config)
    if config.cluster.gpus_per_worker > 0 and not has_gpu():
        raise UserError("cluster.gpus_per_worker: torch sees no GPU on this machine (transloom doctor); leave it out")
    config = with_precision(config)
    warn_of_slow_precision(config)
    given = find_model(folders[0], output_dir(config)) if folders else None
    started_at = time.monotonic()
    is_text = _is_text(config, given)
    if not is_text:
        load_tokenizer(_tokenizer(config, given))  # refused now, not after the training
    corpus = _corpus_of(given)
    prepared = found_prepared(config) if bench.trains or corpus is None else None
    result = _head(bench, config)
    basis = {**_basis(result), "data": _data(prepared, corpus), "model": _about(given)}
    folder, kept = _folder(config, config.corpus.name if bench.trains or given is None else _name_of(given), basis)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            with ended_by_sigterm():
                kept = _measure(config, bench, given, prepared, folder, kept, basis, result)
        except BaseException:
            result |= {"stopped": True, "seconds": time.monotonic() - started_at}
            if "training" in result or "decoding" in result:
                _write(result, folder)
                print_bench(result, folder)
                console.print("These turns are kept: the same command goes on from there.")
            raise
        result["seconds"] = time.monotonic() - started_at
        _write(result, folder)
        kept.add("finished")
    report_bench(config, result, folder)
    print_bench(result, folder)
    return 0


def _bench_lengths(bench: BenchConfig, folders: list[str], config: Config) -> int:
    """part=length: a language model's training steps at several lengths, without Ray and without a corpus."""
    from transloom.jobs.bench.length import length_task, measure_lengths, print_lengths
    from transloom.pipeline.bench.length import length_result

    if folders:
        raise UserError(f"part=length: measures new models, and {folders[0]} is to decode with; leave one of them out")
    if config.cluster.address:
        raise UserError("cluster.address: the bench measures this machine, with processes of its own; leave it out")
    if config.cluster.gpus_per_worker > 0 and not has_gpu():
        raise UserError("cluster.gpus_per_worker: torch sees no GPU on this machine (transloom doctor); leave it out")
    config = with_precision(config)
    task = length_task(config)
    started_at = time.monotonic()
    result = _head(bench, config)
    basis = _basis(result)
    folder, kept = _folder(config, "length", basis)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        kept = go_on(kept) if kept else begin(folder, basis)
        try:
            with ended_by_sigterm(), _progress() as progress:
                measure_lengths(task, bench, kept, progress)
        except BaseException:
            result |= {"stopped": True, "seconds": time.monotonic() - started_at}
            if lines := kept.of("length"):
                result["lengths"] = length_result(lines, bench)
                _write(result, folder)
                print_lengths(result, folder)
                console.print("These measurements are kept: the same command goes on from there.")
            raise
        result |= {"lengths": length_result(kept.of("length"), bench), "seconds": time.monotonic() - started_at}
        _write(result, folder)
        kept.add("finished")
    report_bench(config, result, folder)
    print_lengths(result, folder)
    print_next("transloom ui")
    return 0


def _head(bench: BenchConfig, config: Config) -> dict[str, Any]:
    """The part of the result that is known before anything is measured."""
    return {
        "machine": machine(config.cluster.gpus_per_worker > 0),
        "bench": {key: getattr(value, "value", value) for key, value in dataclasses.asdict(bench).items()},
        "settings": recorded(config),
    }


def _basis(result: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on, beside corpus and model."""
    settings = {key: value for key, value in result["settings"].items() if key not in WITHOUT_EFFECT}
    return {**result, "settings": settings, "code": code_revision()}


def _write(result: dict[str, Any], folder: Path) -> None:
    write_json(folder / RESULT_FILE, result)
    (draw_lengths if "lengths" in result else draw_bench)(result, folder / FIGURE_FILE)


def _data(prepared: Prepared | None, corpus: Path | None) -> str | None:
    """What names the text that is measured with; None before it is prepared."""
    if prepared:
        return prepared.shards.folder.name
    return corpus.name if corpus else None


def _folder(config: Config, of: str, basis: dict[str, Any]) -> tuple[Path, Kept | None]:
    """The bench's folder: that of one that was stopped, and what it has measured, if nothing has changed since; else a
    new one, or that of `name`. Says which of them, and what has changed."""
    benches = output_dir(config) / "bench"
    if config.name:
        folders = [benches / config.name]
    else:
        names = re.compile(rf"{re.escape(of)}-\d{{8}}-\d{{6}}(-[0-9a-f]{{6}})?")
        there = sorted(benches.iterdir(), reverse=True) if benches.exists() else []
        folders = [folder for folder in there if names.fullmatch(folder.name) and user_of(folder) is None]
    stopped = {folder: kept for folder in folders if (kept := stopped_bench(folder)) and kept.turns}
    for folder, kept in stopped.items():
        if not changes(kept, basis):
            console.print(f"Going on with the bench {folder.name}, which was stopped after {kept.turns} turns")
            return folder, kept
    for folder, kept in list(stopped.items())[:1]:
        console.print(
            f"Beginning anew: the bench {folder.name} was stopped after {kept.turns} turns, and since then changed "
            f"{', '.join(changes(kept, basis))}"
        )
    name = config.name or f"{of}-{time.strftime('%Y%m%d-%H%M%S')}"
    if config.name is None and (benches / name).exists():  # the clock was set back, or two began in one second
        name = f"{name}-{uuid.uuid4().hex[:6]}"
    return benches / name, None


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _measure(
    config: Config,
    bench: BenchConfig,
    given: Path | None,
    prepared: Prepared | None,
    folder: Path,
    kept: Kept | None,
    basis: dict[str, Any],
    result: dict[str, Any],
) -> Kept:
    """Both parts into `result`, as far as they are asked for, and as far as they came where this raises.

    Args:
        given: a model folder to decode with, else ours is trained on.
        prepared: None: not prepared yet, or not needed.
        kept: what an earlier command measured. basis: what the figures depend on.
    """
    from transloom.jobs.bench.contenders import has_all_turns, measure_training, task_of, training_result
    from transloom.jobs.bench.decoding import choose_sentences, decoding_result, measure_decoding
    from transloom.jobs.bench.text_decoding import measure_continuing
    from transloom.jobs.ray_cluster.session import ray_session
    from transloom.jobs.training.prepare import prepare_stage

    corpus = _corpus_of(given)
    saves_model = bench.decodes and given is None
    weights = folder / WEIGHTS_FILE if saves_model and not (kept and kept.of("weights")) else None
    takes_turns = bench.trains and not (kept and has_all_turns(bench, kept))
    with ExitStack() as stack:
        progress = stack.enter_context(_progress())
        with ExitStack() as ray:
            if takes_turns or (corpus is None and prepared is None):
                progress("starting Ray", 0, 0)
                ray.enter_context(ray_session(config.cluster))
            if bench.trains or corpus is None:
                prepared = prepared or prepare_stage(config)
            kept = go_on(kept) if kept else begin(folder, {**basis, "data": _data(prepared, corpus)})
            if bench.trains:
                assert prepared is not None
                task = task_of(config, prepared)
                try:
                    if takes_turns or weights:
                        measure_training(task, config.cluster, bench, weights, kept, progress)
                finally:
                    if training := training_result(task, bench, kept):
                        result["training"] = training
        if weights:
            assert prepared is not None
            _save_model(config, bench, prepared, folder)
            kept.add("weights")
        if bench.decodes:
            if corpus is None:
                assert prepared is not None
                corpus = prepared.corpus.folder
            model = given or folder / MODEL_FOLDER
            use_gpu = config.cluster.gpus_per_worker > 0
            if _is_text(config, given):
                if not kept.of("continued"):
                    kept.add("continued", result=measure_continuing(model, corpus, bench, use_gpu, progress))
                result["decoding"] = kept.of("continued")[-1]["result"]
                return kept
            sources, references = [
                [line.decode() for line in read_lines(corpus / f"test.{side}")] for side in ("source", "target")
            ]
            sentences = choose_sentences(model, sources, references, bench.sentences, _tokenizer(config, given))
            try:
                if not kept.of("decoded"):
                    measure_decoding(model, sentences, config.decode, bench, use_gpu, kept, progress)
            finally:
                if decoding := decoding_result(model, sentences, config.decode, bench, kept):
                    result["decoding"] = decoding
    return kept


def _name_of(model: Path) -> str:
    """What people call a model: the run or bench in whose folder it is `model`, else by its own folder."""
    folder = model.resolve()
    return folder.parent.name if folder.name == MODEL_FOLDER else folder.name


def _about(model: Path | None) -> dict[str, Any]:
    """What a model folder says of itself, the hash of its weights too."""
    return read_json(model / MODEL_CONFIG) if model else {}


def _is_text(config: Config, model: Path | None) -> bool:
    """Whether it is a language model that is measured.

    Raises:
        UserError: the model is of another task than the settings, and comes without a corpus to decode.
    """
    from transloom.pipeline.model_folder import is_language_model

    config_is_text = config.task is TaskName.language_model
    is_text = is_language_model(model) if model else config_is_text
    if is_text != config_is_text and _corpus_of(model) is None:
        needed = "experiment=language_model/demo" if is_text else "experiment=bench"
        raise UserError(
            f"task: {config.task.value} has nothing to decode for {model}, a model of another task. Give an experiment "
            f"of its task, such as {needed}"
        )
    return is_text


def _tokenizer(config: Config, model: Path | None) -> str:
    """BLEU's tokenizer for the model's language, else the corpus'."""
    return tokenizer_for(
        _about(model).get("target_language", pairs_of(config, "bench").target_language), config.evaluate
    )


def _corpus_of(model: Path | None) -> Path | None:
    """The corpus that a run's model was trained for; None of a model folder that stands alone."""
    return stage_folder(model.parent, "corpus") if model and (model.parent / PREPARED_FILE).exists() else None


def _save_model(config: Config, bench: BenchConfig, prepared: Prepared, folder: Path) -> None:
    """The weights that training left, as a model folder."""
    from safetensors.torch import load_file

    from transloom.pipeline.model_folder import save_model

    about: dict[str, Any] = {"run": folder.name, "steps": [bench.steps_in_all]}
    if config.languages:
        about |= {"source_language": config.languages[0], "target_language": config.languages[1]}
    weights = folder / WEIGHTS_FILE
    save_model(folder / MODEL_FOLDER, config.model, load_file(weights), prepared.tokenizer.folder, about)
    weights.unlink()


def _sort(argv: Sequence[str]) -> tuple[BenchConfig, list[str], list[str]]:
    """The bench's own settings, folders, and the settings that are everyone's."""
    folders, own, settings = sort_words(argv, OWN)
    if resume := next((word for word in settings if word.startswith("resume=")), None):
        run = resume.partition("=")[2] or "<run>"
        raise UserError(f"resume: give the run as a plain word: transloom bench {run} part=decode")
    if not any(word.startswith("experiment=") for word in settings):
        own_experiment = LENGTH_EXPERIMENT if own.get("part") == Part.length.value else "bench"
        settings = [f"experiment={own_experiment}", *settings]
    try:
        return BenchConfig(**{key: _value(key, value) for key, value in own.items()}), folders, settings
    except ValueError as error:
        raise UserError(str(error)) from None


def _value(key: str, value: str) -> Any:
    if key == "part":
        if value not in [one.value for one in Part]:
            raise UserError(f"part={value}: there is {', '.join(one.value for one in Part)}")
        return Part(value)
    try:
        if key == "lengths":
            return tuple(int(length) for length in value.strip("[]").split(","))
        return int(value)
    except ValueError:
        kind = "whole numbers, such as 1024,2048" if key == "lengths" else "a whole number"
        raise UserError(f"{key}={value}: must be {kind}") from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows what is going on and, once that is known, for how long."""
    status = StatusLine()
    began: dict[str, float] = {}

    def show(what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if not total:
            status.show(f"  {what} …", now=True)
            return
        elapsed = now - began.setdefault(what.partition(" ")[0], now)  # round …, training …, decoding …
        left = f"   ETA {clock(elapsed / done * (total - done))}" if done and elapsed else ""
        status.show(f"  {what} ({done} of {total}){left}", now=True)

    try:
        yield show
    finally:
        status.clear()
