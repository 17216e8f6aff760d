"""Bench: what the orchestration costs, and how training and decoding compare with what is usually used.

All on this machine and in one run: contenders are processes that stay alive and take turns.
"""

import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jobs.bench.summary import machine, print_bench, report_bench
from jobs.cli import configuration, sort_words, usage
from jobs.config.compose import recorded
from jobs.config.schema import Config, pairs_of
from jobs.runs.model import find_model
from jobs.runs.workspace import output_dir, stage_folder
from jobs.terminal.console import StatusLine, clock
from jobs.training.precision import warn_of_slow_precision, with_precision
from pipeline.bench.config import BenchConfig, Part
from pipeline.bench.picture import draw_bench
from pipeline.data.lines import read_lines
from pipeline.data.prepare import Prepared
from pipeline.errors import UserError
from pipeline.evaluate.tokenizers import load_tokenizer, tokenizer_for
from pipeline.files import read_json, write_json
from pipeline.progress import Progress
from pipeline.run_folder import MODEL_CONFIG, MODEL_FOLDER, PREPARED_FILE
from pipeline.tasks.build import TaskName

OWN = [field.name for field in dataclasses.fields(BenchConfig)]
RESULT_FILE, FIGURE_FILE, WEIGHTS_FILE = "bench.json", "bench.png", "weights.safetensors"


def main(argv: list[str]) -> int:
    from jobs.bench.contenders import refuse_unlike

    bench, folders, settings = _sort(argv)
    config = configuration("bench", settings)
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
    of = config.corpus.name if bench.trains or given is None else _name_of(given)
    name = config.name or f"{of}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = output_dir(config) / "bench" / name
    if config.name is None and folder.exists():  # the clock was set back, or two began in one second
        folder = folder.with_name(f"{name}-{uuid.uuid4().hex[:6]}")
    result: dict[str, Any] = {
        "machine": machine(config.cluster.gpus_per_worker > 0),
        "bench": {key: getattr(value, "value", value) for key, value in dataclasses.asdict(bench).items()},
        "settings": recorded(config),
    }
    _measure(config, bench, given, folder, result)
    result["seconds"] = time.monotonic() - started_at
    write_json(folder / RESULT_FILE, result)
    draw_bench(result, folder / FIGURE_FILE)
    report_bench(config, result, folder)
    print_bench(result, folder)
    return 0


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _measure(config: Config, bench: BenchConfig, given: Path | None, folder: Path, result: dict[str, Any]) -> None:
    """Both parts into `result`, as far as they are asked for; `given` is a model folder to decode with, else ours is
    trained on."""
    from jobs.bench.contenders import measure_training, task_of
    from jobs.bench.decoding import measure_decoding
    from jobs.bench.text_decoding import measure_continuing
    from jobs.ray_cluster.session import ray_session
    from jobs.training.prepare import found_prepared, prepare_stage

    corpus = _corpus_of(given)
    model = read_json(given / MODEL_CONFIG) if given else {}
    config_is_text = config.task is TaskName.language_model
    is_text = model.get("architecture") == "decoder_only" if model else config_is_text
    if corpus is None and is_text != config_is_text:
        needed = "experiment=language_model/demo" if is_text else "experiment=bench"
        raise UserError(
            f"task: {config.task.value} has nothing to decode for {given}, a model of another task. Give an experiment "
            f"of its task, such as {needed}"
        )
    if not is_text:
        language = model.get("target_language") or pairs_of(config, "bench").target_language
        tokenize = tokenizer_for(language, config.evaluate)
        load_tokenizer(tokenize)  # refused now, not after the training
    with ExitStack() as stack:
        progress = stack.enter_context(_progress())
        if bench.trains or corpus is None:
            prepared = found_prepared(config)
            with ExitStack() as ray:
                if bench.trains or prepared is None:
                    progress("starting Ray", 0, 0)
                    ray.enter_context(ray_session(config.cluster))
                prepared = prepared or prepare_stage(config)
                folder.mkdir(parents=True, exist_ok=True)
                if bench.trains:
                    task = task_of(config, prepared)
                    weights = folder / WEIGHTS_FILE if bench.decodes and given is None else None
                    result["training"] = measure_training(task, config.cluster, bench, weights, progress)
                    write_json(folder / RESULT_FILE, result)  # kept, whatever comes over the decoding
            corpus = corpus or prepared.corpus.folder
            if bench.decodes and given is None:
                given = _save_model(config, bench, prepared, folder)
        if bench.decodes:
            assert given is not None and corpus is not None
            folder.mkdir(parents=True, exist_ok=True)
            use_gpu = config.cluster.gpus_per_worker > 0
            if is_text:
                result["decoding"] = measure_continuing(given, corpus, bench, use_gpu, progress)
                return
            sources, references = [
                [line.decode() for line in read_lines(corpus / f"test.{side}")] for side in ("source", "target")
            ]
            result["decoding"] = measure_decoding(
                given, sources, references, config.decode, bench, use_gpu, progress, tokenize
            )


def _name_of(model: Path) -> str:
    """What people call a model: the run or bench in whose folder it is `model`, else by its own folder."""
    folder = model.resolve()
    return folder.parent.name if folder.name == MODEL_FOLDER else folder.name


def _corpus_of(model: Path | None) -> Path | None:
    """The corpus that a run's model was trained for; None of a model folder that stands alone."""
    return stage_folder(model.parent, "corpus") if model and (model.parent / PREPARED_FILE).exists() else None


def _save_model(config: Config, bench: BenchConfig, prepared: Prepared, folder: Path) -> Path:
    """The weights that training left, as a model folder."""
    from safetensors.torch import load_file

    from pipeline.model_folder import save_model

    about: dict[str, Any] = {"run": folder.name, "steps": [bench.steps_in_all]}
    if config.languages:
        about |= {"source_language": config.languages[0], "target_language": config.languages[1]}
    weights = folder / WEIGHTS_FILE
    save_model(folder / MODEL_FOLDER, config.model, load_file(weights), prepared.tokenizer.folder, about)
    weights.unlink()
    return folder / MODEL_FOLDER


def _sort(argv: Sequence[str]) -> tuple[BenchConfig, list[str], list[str]]:
    """The bench's own settings, folders, and the settings that are everyone's."""
    folders, own, settings = sort_words(argv, OWN)
    if resume := next((word for word in settings if word.startswith("resume=")), None):
        run = resume.partition("=")[2] or "<run>"
        raise UserError(f"resume: give the run as a plain word: transloom bench {run} part=decode")
    if not any(word.startswith("experiment=") for word in settings):
        settings = ["experiment=bench", *settings]
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
        return int(value)
    except ValueError:
        raise UserError(f"{key}={value}: must be a whole number") from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows what is going on and, once that is known, for how long."""
    status = StatusLine()
    began: dict[str, float] = {}

    def show(what: str, done: int, total: int) -> None:
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
