"""The settings of a run. Every part of the pipeline owns its settings, which `Config` nests. Those of the cluster and
of races are declared here."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transloom.model.build import architecture_of
from transloom.model.config import DecoderConfig, LanguageModelConfig, TransformerConfig
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig
from transloom.pipeline.data.documents import DocumentsConfig
from transloom.pipeline.data.labelled import LabelledConfig
from transloom.pipeline.data.prompts import PromptsConfig
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import DEFAULT, EvaluateConfig, tokenizer_for
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.secrets import redacted
from transloom.pipeline.sweep.config import SweepConfig
from transloom.pipeline.tasks.build import TaskName
from transloom.pipeline.tracking.address import TrackingConfig
from transloom.pipeline.train.engine import EngineConfig, OptimizerConfig, PrecisionConfig
from transloom.pipeline.train.schedule import ScheduleConfig, check_total
from transloom.pipeline.train.session import TrainConfig

if TYPE_CHECKING:
    from transloom.model.build import ModelConfig

    Corpus = CorpusConfig | DocumentsConfig | LabelledConfig | PromptsConfig
    AnyTokenizer = TokenizerConfig | TextTokenizerConfig
else:  # OmegaConf has no unions of dataclasses; `_typed` of compose.py chooses by model.architecture and the task
    ModelConfig = Corpus = AnyTokenizer = Any

# The sections whose settings depend on the task.
TASK_SECTIONS = {
    TaskName.translation.value: {"corpus": CorpusConfig, "tokenizer": TokenizerConfig},
    TaskName.language_model.value: {"corpus": DocumentsConfig, "tokenizer": TextTokenizerConfig},
    TaskName.classification.value: {"corpus": LabelledConfig, "tokenizer": TextTokenizerConfig},
    TaskName.masked_language_model.value: {"corpus": DocumentsConfig, "tokenizer": TextTokenizerConfig},
    TaskName.prompt_response.value: {"corpus": PromptsConfig, "tokenizer": TextTokenizerConfig},
}

MAX_SEED = 2**32 - 1  # NumPy's limit


@dataclass(frozen=True)
class ClusterConfig:
    """The cluster of the workers: a Ray on this machine alone, or an existing cluster.

    Attributes:
        address: Ray's: `auto` for the cluster this machine belongs to, `host:port`, or none for a local Ray.
        num_workers: the largest number of workers. On the command line [2,8] means 8, and min_workers=2.
        min_workers: the smallest number of workers: as nodes leave and come, a training goes on with as many workers as
            fit. None: always num_workers.
        cpus_per_worker: CPU cores of each worker.
        gpus_per_worker: GPUs of each worker: 0 or 1.
        max_failures: how often workers may die, hang or not start before the training gives up.
        hang_minutes: the workers are ended and started again if a worker begins no other micro-batch for this time, or
            does not finish a validation or a checkpoint in ten times as long, or if processes do not start in this
            time (at least three minutes). 0: never.
    """

    address: str | None = None
    num_workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_failures: int = 3
    hang_minutes: float = 10.0

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers: must be at least 1, not {self.num_workers}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers: must be from 1 to num_workers ({self.num_workers}), not {self.min_workers}")
        if self.hang_minutes < 0:
            raise ValueError(f"hang_minutes: must be at least 0, not {self.hang_minutes}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker: must be more than 0, not {self.cpus_per_worker}")
        # One process drives one device: half a GPU or two would break the engines' rank-to-device rule.
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker: must be 0 or 1, not {self.gpus_per_worker}; add workers for more GPUs")
        if self.max_failures < 0:
            raise ValueError(f"max_failures: must be at least 0, not {self.max_failures}")

    @property
    def fewest_workers(self) -> int:
        """The smallest number of workers that a training begins with."""
        return self.num_workers if self.min_workers is None else self.min_workers


@dataclass(frozen=True)
class RaceConfig:
    """The comparison of `transloom race`.

    Attributes:
        contenders: by name, the words (key=value, group=option) that a contender adds to the common settings.
        lengths: of sentences, in tokens, for measuring the training speed.
    """

    contenders: dict[str, list[str]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])

    def __post_init__(self) -> None:
        for name in self.contenders:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"contenders: names become names of runs: letters, digits, . _ - only, not {name!r}")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths: must be at least 1 each, not {self.lengths}")


@dataclass(frozen=True)
class Config:
    """All settings of a pipeline run.

    In YAML and on the command line `model` also has the key `architecture`, which determines the section's other
    settings.

    Attributes:
        task: what is learned; it determines the settings of `corpus` and `tokenizer`.
        seed: of the initial weights, the order of data, and dropout.
        name: of the run and its folder; None: made from the corpus's name and a hash.
        output_dir: where everything is written and found; a relative folder is below the command's working directory.
        storage: an fsspec URL, such as s3://bucket/folder: finished files are copied there, and files missing in
            `output_dir` are fetched from there.
        resume: the name or the folder of a run to go on with, with its own settings.
    """

    task: TaskName = TaskName.translation
    corpus: Corpus = field(default_factory=CorpusConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    tokenizer: AnyTokenizer = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=TransformerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: BeamConfig = field(default_factory=BeamConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    race: RaceConfig = field(default_factory=RaceConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 1
    name: str | None = None
    output_dir: str = "outputs"
    storage: str | None = None
    resume: str | None = None

    @property
    def languages(self) -> tuple[str, str] | None:
        """Source and target language; None for a task other than translation."""
        if not isinstance(self.corpus, CorpusConfig):
            return None
        return self.corpus.source_language, self.corpus.target_language

    @property
    def bleu_tokenizer(self) -> str:
        """BLEU's tokenizer; sacreBLEU's default for a task other than translation."""
        return tokenizer_for(self.languages[1], self.evaluate) if self.languages else DEFAULT

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: becomes a folder's name: letters, digits, . _ - only, not {self.name!r}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: must be from 0 to {MAX_SEED}, not {self.seed}")
        if self.storage is not None and (shown := redacted(self.storage)) != self.storage:
            raise ValueError(f"storage: {shown} has a password or token in it; set it in the environment instead")
        if self.storage is not None and not re.fullmatch(r"\w+://.+", self.storage):
            raise ValueError(f"storage: {self.storage!r} is no address; give s3://bucket/folder or another fsspec URL")
        if self.resume is not None and not self.resume.strip():
            raise ValueError("resume: is empty; give the name or the folder of a run, or leave it out")


def pairs_of(config: Config, job: str) -> CorpusConfig:
    """The corpus of a job that is for translation only.

    Raises:
        UserError: the task is not translation.
    """
    if not isinstance(config.corpus, CorpusConfig):
        raise UserError(f"task: {job} is about translations, and knows no task={config.task.value}")
    return config.corpus


def refuse_contradictions(config: Config) -> Config:
    """Checks settings against each other; returns the configuration.

    Raises:
        UserError: some workers would never have a micro-batch; the schedule does not fit into the training; the model
            is not for the task; texts of the model's length do not fit into a micro-batch.
    """
    reads_both_ways = config.task in (TaskName.classification, TaskName.masked_language_model)
    is_text = config.task is TaskName.language_model or reads_both_ways
    is_decoder = isinstance(config.model, DecoderConfig if reads_both_ways else LanguageModelConfig)
    if is_text != is_decoder and config.task is not TaskName.prompt_response:  # whose model may be of either kind
        fitting = "decoder_only (model=lm_small, gpt2_124m, …)" if is_text else "transformer or lstm (model=small, …)"
        raise UserError(
            f"model.architecture: {architecture_of(config.model)} is no model of task={config.task.value}; take one of "
            f"architecture {fitting}"
        )
    if config.task is not TaskName.translation and config.clean != CleanConfig():
        raise UserError(f"clean: its rules are of sentence pairs, and mean nothing to task={config.task.value}")
    if config.train.r_drop:
        _refuse_wrong_r_drop(config)
    if isinstance(config.corpus, DocumentsConfig) and "validation" not in config.corpus.splits:
        raise UserError(
            "corpus.held_out.validation: is 0, and corpus.validation has no data, but a training is validated; hold a "
            "share out, such as 0.01"
        )
    if isinstance(config.model, DecoderConfig):
        _refuse_wrong_sight(config.task, config.model)
    if isinstance(config.corpus, PromptsConfig):
        _refuse_wrong_prompts(config.corpus, config.model.max_positions, is_decoder)
    context = config.model.max_positions or 0
    if config.task is not TaskName.translation and config.batch.micro_tokens < context:
        raise UserError(
            f"batch.micro_tokens: {config.batch.micro_tokens:,} is less than a text of model.max_positions={context:,} "
            "tokens; raise it, or lower model.max_positions"
        )
    if config.train.frozen_layers > (depth := max(config.model.depths)):
        raise UserError(
            f"train.frozen_layers: {config.train.frozen_layers} layers can't be frozen, as the model has {depth}"
        )
    workers, micro_batches = config.cluster.num_workers, config.batch.micro_batches
    if workers > micro_batches:
        raise UserError(
            f"cluster.num_workers: {workers} workers can't share a step of {micro_batches} micro-batches; raise "
            "batch.tokens or lower batch.micro_tokens"
        )
    try:
        check_total(config.schedule, config.train.max_steps)
    except ValueError as error:
        raise UserError(f"schedule.{error}") from error
    return config


def _refuse_wrong_r_drop(config: Config) -> None:
    """
    Raises:
        UserError: the task is not translation, or nothing is dropped, so that two passes are equal.
    """
    if config.task is not TaskName.translation:
        raise UserError(f"train.r_drop: is of translation alone, and means nothing to task={config.task.value}")
    if config.model.dropout == 0.0:
        raise UserError(
            "train.r_drop: compares two passes with other elements dropped, and model.dropout is 0; raise it"
        )


def _refuse_wrong_sight(task: TaskName, model: DecoderConfig) -> None:
    """
    Raises:
        UserError: a model that continues texts sees the tokens that it predicts, or a masked language model sees no
            token behind a mask.
    """
    if task is TaskName.masked_language_model and model.causal:
        raise UserError(
            "model.causal: is true, and task=masked_language_model reads on both sides of a mask; set "
            "model.causal=false"
        )
    if task not in (TaskName.masked_language_model, TaskName.classification) and not model.causal:
        raise UserError(
            f"model.causal: is false, and task={task.value} would see the tokens that it predicts; set "
            "model.causal=true"
        )


def _refuse_wrong_prompts(corpus: PromptsConfig, context: int | None, is_decoder: bool) -> None:
    """
    Args:
        context: the model's max_positions; None: any number.
    Raises:
        UserError: there is no validation set, or the model has no room for prompts and responses.
    """
    if "validation" not in corpus.splits:
        raise UserError(
            "corpus.held_out: is 0, and corpus.validation has no files, but a training is validated; hold a share out, "
            "such as 0.05"
        )
    if context is not None and corpus.max_response_tokens > context - is_decoder:
        raise UserError(
            f"corpus.max_response_tokens: {corpus.max_response_tokens:,} tokens of a response do not fit into "
            f"model.max_positions={context:,}{' with a prompt' if is_decoder else ''}; lower it, or raise "
            "model.max_positions"
        )
