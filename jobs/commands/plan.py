"""Plan: what a training takes in memory, time and money, before anything is started."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from transloom.jobs.cli import configuration, sort_words
from transloom.jobs.config.compose import recorded
from transloom.jobs.config.schema import Config
from transloom.jobs.plan.summary import plan_precision, print_plan
from transloom.jobs.ray_cluster.session import ALLOCATOR
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import output_dir, prepared_before
from transloom.jobs.terminal.console import StatusLine, console
from transloom.jobs.training.precision import warn_of_slow_precision
from transloom.model.build import architecture_of
from transloom.model.config import LanguageModelConfig
from transloom.model.flops import count_parameters
from transloom.pipeline.data.corpus_config import CorpusConfig
from transloom.pipeline.data.labelled import LabelledConfig
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prompts import PromptsConfig
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import NotBuilt, hash_of, write_json
from transloom.pipeline.plan.calibrate import Calibration, calibrate, calibrated
from transloom.pipeline.plan.hardware import GPUS, Hardware, this_cpu
from transloom.pipeline.plan.memory import cpu_footing
from transloom.pipeline.plan.picture import draw_plan
from transloom.pipeline.plan.plan import as_given, make_plan
from transloom.pipeline.plan.probe import Probe
from transloom.pipeline.plan.text_volume import (
    TextVolume,
    estimated_labelled_volume,
    estimated_text_volume,
    prepared_text_volume,
    vocabulary_of,
)
from transloom.pipeline.plan.training import Training, memory_alone
from transloom.pipeline.plan.volume import Volume, estimated_volume, prepared_volume
from transloom.pipeline.processor import processor_flags
from transloom.pipeline.tasks.build import prepare_data
from transloom.pipeline.train.engine import EngineName

KEYS = ("h200", "h100", "a100", "cpu")
# What may be given for a device, the unit of the number, and what it is.
GIVEN = {
    "price": (1.0, "US dollars for an hour of one device, such as {key}=2.5"),
    "link": (1e9, "GB/s from a device to its neighbour in a machine, such as {key}=360"),
    "network": (1e9, "GB/s of each device between machines, such as {key}=12.5 (100 Gb/s)"),
}
FEW = 100  # micro-batches: about what a calibration trains
RESULT_FILE, PICTURE_FILE = "plan.json", "plan.png"


def main(argv: list[str]) -> int:
    settings, calibrates, given = _sort(argv)
    config = configuration("plan", settings)
    training = training_of(config, _found(config))
    calibration = calibrate_here(config, _on_this_machine(config, training)) if calibrates else None
    plan = plan_of(config, training, given, calibration)
    folder = _folder(config)
    write_json(folder / RESULT_FILE, plan)
    draw_plan(plan, folder / PICTURE_FILE, f"{folder.name}, {plan_precision(plan)}")
    print_plan(plan, folder.name)
    if not training.on_gpu and not config.cluster.address:
        warn_of_slow_precision(config)
    console.print(f"\nFigures  {folder / RESULT_FILE}\nPicture  {folder / PICTURE_FILE}")
    print_next(*next_commands(plan, settings, calibrates))
    return 0


def plan_of(
    config: Config,
    training: Training,
    given: Mapping[str, Mapping[str, float]],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """The plan, with the settings and the measurement that it was made from.

    Args:
        given: see `as_given`.
    """
    cpu, footing = this_machine(config), cpu_footing(training.engine.name is EngineName.deepspeed)
    if calibration:
        parameters = count_parameters(training.model, training.vocab_size)
        here = _on_this_machine(config, training)
        predicted = memory_alone(here, calibration.micro_batches, footing)
        cpu, footing = calibrated(cpu, footing, calibration, here.precision, parameters, predicted)
    devices = [as_given(one, given) for one in (*GPUS, cpu)]
    plan = make_plan(training, devices, footing, calibration.checkpoint_seconds if calibration else None)
    plan["settings"] = _settings(config)
    plan["calibration"] = dataclasses.asdict(calibration) if calibration else None
    return plan


def _settings(config: Config) -> dict[str, Any]:
    """What the plan depends on; no address of a tracker, which may have a password in it."""
    return {key: value for key, value in recorded(config).items() if key not in ("name", "output_dir", "tracking")}


def _folder(config: Config) -> Path:
    """The plan's own: the same settings give the same one."""
    name = config.name or f"{config.corpus.name}-{hash_of(_settings(config))[:8]}"
    folder = output_dir(config) / "plans" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: can't make the folder {folder}: {error.strerror}. Set output_dir=") from error
    return folder


def _sort(argv: Sequence[str]) -> tuple[list[str], bool, dict[str, dict[str, float]]]:
    """The settings that are everyone's, whether to calibrate, and what is given for devices; see `as_given`.

    Raises:
        UserError: a word is none of them.
    """
    words = ["calibrate=true" if word == "--calibrate" else word for word in argv]
    plain, own, settings = sort_words(words, ["calibrate", *(f"{field}.{key}" for field in GIVEN for key in KEYS)])
    if plain:
        raise UserError(f"{plain[0]}: is not of the form key=value or group=option")
    for word in settings:
        key = word.partition("=")[0]
        if (field := key.partition(".")[0]) in GIVEN:
            raise UserError(f"{key}: no such {field}; there are {', '.join(f'{field}.{key}' for key in KEYS)}")
    answer = own.pop("calibrate", "false")
    if answer not in ("true", "false"):
        raise UserError(f"calibrate={answer}: must be true or false")
    given: dict[str, dict[str, float]] = {field: {} for field in GIVEN}
    for key, word in own.items():
        field, _, device = key.partition(".")
        given[field][device] = _number(key, word, *GIVEN[field])
    return settings, answer == "true", given


def _number(key: str, word: str, unit: float, what: str) -> float:
    """
    Args:
        unit: that the number is counted in. what: it is, for the message.
    """
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf") or (unit > 1 and number == 0):  # a device may cost nothing
        raise UserError(f"{key}={word}: must be {what.format(key=key)}")
    return unit * number


def _found(config: Config) -> Prepared | None:
    """What was prepared before; None where it was not, or where the corpus is not at hand."""
    if config.resume:
        return prepared_before(config)
    try:
        return prepare_data(config, output_dir(config), only_find=True)
    except (NotBuilt, UserError):
        return None


def training_of(config: Config, prepared: Prepared | None) -> Training:
    """What the plan is of."""
    if prepared:
        vocab_size = prepared.tokenizer.manifest["counts"]["vocab_size"]
    elif isinstance(config.tokenizer, TextTokenizerConfig):
        vocab_size = vocabulary_of(config.tokenizer)
    elif config.tokenizer.path:
        vocab_size = Tokenizer.load(Path(config.tokenizer.path)).vocab_size
    else:
        vocab_size = config.tokenizer.vocab_size
    sentences, tokens = _validation(config, prepared)
    return Training(
        validation_sentences=sentences,
        validation_tokens=tokens,
        model=config.model,
        vocab_size=vocab_size,
        batch=config.batch,
        engine=config.engine,
        precision=config.precision.dtype,
        train=config.train,
        seed=config.seed,
        corpus=config.corpus.name,
        volume=_volume(config, prepared),
        shards=prepared.shards.folder if prepared else None,
        workers=config.cluster.num_workers,
        on_gpu=config.cluster.gpus_per_worker > 0,
    )


def _validation(config: Config, prepared: Prepared | None) -> tuple[int | None, tuple[float, ...] | None]:
    """Examples and tokens, by column, of the validation set; None where they are not counted."""
    if prepared is None:
        return None, None
    counts = prepared.corpus.manifest["counts"]
    tokens = prepared.shards.manifest["counts"]["splits"].get("validation", {})
    columns = [float(count) for name, count in tokens.items() if name.endswith("tokens") and name != "tail_tokens"]
    if isinstance(config.corpus, CorpusConfig):
        return counts["splits"]["validation"]["pairs"], tuple(columns)
    return None, (sum(columns),) if columns else None


def _volume(config: Config, prepared: Prepared | None) -> Volume | TextVolume:
    """Counted where the corpus is prepared, else estimated."""
    shards = prepared.shards.folder if prepared else None
    if isinstance(config.corpus, CorpusConfig):
        if shards:
            return prepared_volume(shards, config.batch, config.seed)
        return estimated_volume(config.corpus, config.batch)
    if not isinstance(config.model, LanguageModelConfig):
        raise UserError(
            f"model.architecture: plan knows no {architecture_of(config.model)} of task={config.task.value}; take a "
            "decoder_only model, such as model=lm_small"
        )
    assert isinstance(config.model, LanguageModelConfig) and isinstance(config.tokenizer, TextTokenizerConfig)
    context = config.model.max_positions
    if shards:
        return prepared_text_volume(shards, context, config.batch, config.seed)
    if isinstance(config.corpus, LabelledConfig | PromptsConfig):
        return estimated_labelled_volume(config.corpus, config.tokenizer, context, config.batch)
    return estimated_text_volume(config.corpus, config.tokenizer, context, config.batch)


def this_machine(config: Config) -> Hardware:
    """This machine's CPU, as workers of the configuration would share it."""
    memory = psutil.virtual_memory().total
    return this_cpu(len(os.sched_getaffinity(0)), config.cluster.cpus_per_worker, memory, processor_flags())


def _on_this_machine(config: Config, training: Training) -> Training:
    """The training in what this machine's CPU computes in."""
    return dataclasses.replace(training, precision=this_machine(config).precision_of(training.precision))


def calibrate_here(config: Config, training: Training) -> Calibration:
    """Takes some training steps here, in the training's precision, which is not `auto`.

    Raises:
        UserError: the memory would not do.
    """
    workers = min(training.workers, this_machine(config).per_machine)
    footing = cpu_footing(False)
    needed = (1 + workers) * (memory_alone(training, FEW, footing) + footing.libraries)
    if needed > psutil.virtual_memory().available:
        raise UserError(
            f"calibrate: {1 + workers} processes would need about {needed / 1e9:.0f} GB, and this machine has "
            f"{psutil.virtual_memory().available / 1e9:.0f} GB to spare; lower batch.micro_tokens, or leave it out"
        )
    # Two micro-batches at most: as a step's, with what accumulation costs, in a fraction of its time
    held = min(2, -(-training.batch.micro_batches // workers))
    probe = Probe(
        model=training.model,
        vocab_size=training.vocab_size,
        batch=dataclasses.replace(training.batch, tokens=held * training.batch.micro_tokens),
        optimizer=config.optimizer,
        precision=dataclasses.replace(config.precision, dtype=training.precision),
        label_smoothing=config.train.label_smoothing,
        seed=config.seed,
        shards=str(training.shards) if training.shards and not isinstance(config.corpus, PromptsConfig) else None,
        lengths=training.lengths,
        members=1,
        folder=str(output_dir(config)),
    )
    environment = {**ALLOCATOR, "OMP_NUM_THREADS": str(max(1, int(config.cluster.cpus_per_worker)))}
    parameters = count_parameters(training.model, training.vocab_size)
    status = StatusLine()

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        status.show(f"  calibrating: {what}" + (f" ({done} of {total})" if total else "") + " …", now=True)

    try:
        return calibrate(probe, workers, parameters, environment, progress)
    finally:
        status.clear()


def next_commands(plan: dict[str, Any], settings: Sequence[str], calibrated: bool) -> list[str]:
    """What to type next: the run itself where it fits, else a plan of what may fit."""
    words = list(settings)
    # The smallest GPU of the table decides where GPUs are asked for
    own = [one for one in plan["hardware"] if (one["key"] != "cpu") == plan["on_gpu"]]
    worst = max(own, key=lambda one: one["memory_bytes"] / one["device_bytes"])
    if worst["recommended_stage"] is None:
        tokens, most = plan["batch"]["tokens"], plan["batch"]["micro_tokens"] // 2
        less = next(some for some in range(max(1, most), 0, -1) if tokens % some == 0)
        changes = [f"batch.micro_tokens={less}"]
        if less < plan["model"].get("max_positions", 0):  # a micro-batch holds a whole text
            changes.append(f"model.max_positions={less}")
        return [f"{_command('plan', words, *changes)}  # it does not fit into {worst['name']}"]
    if not worst["fits"] or worst["stage"] != _stage_of(plan):
        words = _with(words, f"engine=zero{worst['recommended_stage']}")
    commands = [_command("run", words)]
    if not calibrated and not plan["on_gpu"]:
        commands.append(f"{_command('plan', settings)} --calibrate  # measures this machine instead of assuming")
    return commands


def _stage_of(plan: dict[str, Any]) -> int:
    engine = plan["engine"]
    return engine["zero_stage"] if engine["name"] == "deepspeed" else 0


def _with(words: Sequence[str], word: str) -> list[str]:
    """The words with another value of a key or group."""
    key = word.partition("=")[0]
    return [*(one for one in words if one.partition("=")[0] != key), word]


def _command(job: str, words: Sequence[str], *changes: str) -> str:
    for word in changes:
        words = _with(words, word)
    return shlex.join(["transloom", job, *words])
