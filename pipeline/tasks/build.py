"""The tasks by name. Code that prepares, trains, sweeps or draws imports this module and no task."""

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress import MapTasks, Progress, no_progress
from pipeline.tasks.task import Metric, Scoring, Task

if TYPE_CHECKING:
    from pipeline.data.prepare import Prepared


class TaskName(Enum):
    """The task that a model learns."""

    translation = "translation"
    language_model = "language_model"
    classification = "classification"
    masked_language_model = "masked_language_model"
    prompt_response = "prompt_response"


def selecting_metric(task: TaskName, corpus: Any = None) -> Metric:
    """The metric that chooses among runs of a task.

    Args:
        corpus: its settings, which name the metric of prompts and responses.
    """
    match task:
        case TaskName.translation:
            from pipeline.tasks.translation import BLEU

            return BLEU
        case TaskName.language_model:
            from pipeline.tasks.language_model import BITS_PER_BYTE

            return BITS_PER_BYTE
        case TaskName.classification:
            from pipeline.tasks.classification import ACCURACY

            return ACCURACY
        case TaskName.masked_language_model:
            from pipeline.tasks.masked_language_model import MASKED_ACCURACY

            return MASKED_ACCURACY
        case TaskName.prompt_response:
            from pipeline.tasks.prompt_response import metric_of

            return metric_of(corpus)


def token_columns(task: TaskName) -> tuple[str, ...]:
    """The columns of a task's examples whose tokens a training counts; the last has the predicted tokens."""
    match task:
        case TaskName.translation:
            return ("source", "target")
        case TaskName.language_model | TaskName.classification | TaskName.masked_language_model:
            return ("text",)
        case TaskName.prompt_response:
            return ("text", "response")


def loss_unit(task: TaskName) -> str | None:
    """What a task's losses are of; None: a token of the last of `token_columns`."""
    return {TaskName.classification: "text", TaskName.masked_language_model: "masked token"}.get(task)


def corpus_baselines(task: TaskName, counts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Values of the selecting metric for simple models that the preparation has counted, by split and name.

    Args:
        counts: of the corpus's manifest.
    """
    # The 5-gram model of documents predicts bytes, and no masked tokens.
    return {} if task is TaskName.masked_language_model else counts.get("baselines", {})


def with_local_corpus(config: Any, folder: Path, progress: Progress = no_progress) -> Any:
    """The corpus with each URL replaced by the path of a copy below `folder`.

    Raises:
        UserError: a file can't be reached; names the setting.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.data.remote import with_local_files

            return with_local_files(config.corpus, folder, progress)
        case TaskName.language_model | TaskName.masked_language_model:
            from pipeline.data.documents import with_local_documents

            return with_local_documents(config.corpus, folder, progress)
        case TaskName.classification:
            from pipeline.data.labelled import with_local_labelled

            return with_local_labelled(config.corpus, folder, progress)
        case TaskName.prompt_response:
            from pipeline.data.prompts import with_local_prompts

            return with_local_prompts(config.corpus, folder, progress)
        case _:
            raise ValueError(f"task: {config.task}")


def refuse_wrong_corpus(config: Any) -> None:
    """Checks the files of a corpus before its preparation, as far as that takes no time.

    Raises:
        UserError: a file is missing, or has another format than expected.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.data.corpus import SPLITS, count_mix, count_pairs, refuse_wrong_files

            refuse_wrong_files(config.corpus)
            for split in SPLITS:  # refuses sides of unequal lengths
                count_pairs(config.corpus, split)
            count_mix(config.corpus)
        case TaskName.language_model | TaskName.masked_language_model:
            from pipeline.data.prepare_documents import refuse_missing_documents

            refuse_missing_documents(config.corpus)
        case TaskName.classification:
            from pipeline.data.prepare_labelled import refuse_missing_records

            refuse_missing_records(config.corpus)
        case TaskName.prompt_response:
            from pipeline.data.prepare_prompts import refuse_missing_records

            refuse_missing_records(config.corpus)


def prepare_data(
    config: Any, folder: Path, map_tasks: MapTasks = map, progress: Progress = no_progress, only_find: bool = False
) -> "Prepared":
    """The corpus, the tokenizer and the shards of a configuration, below an output folder; see
    `pipeline.data.prepare.prepare`.

    Args:
        config: with a corpus of local files.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.data.prepare import prepare

            return prepare(
                config.corpus, config.clean, config.tokenizer, folder, map_tasks, progress, only_find=only_find
            )
        case TaskName.language_model | TaskName.masked_language_model:
            from pipeline.data.prepare_documents import prepare_documents

            return prepare_documents(config.corpus, config.tokenizer, folder, map_tasks, progress, only_find=only_find)
        case TaskName.classification:
            from pipeline.data.prepare_labelled import prepare_labelled

            return prepare_labelled(config.corpus, config.tokenizer, folder, map_tasks, progress, only_find=only_find)
        case TaskName.prompt_response:
            from pipeline.data.prepare_prompts import prepare_prompts
            from pipeline.tasks.prompt_response import baseline_scores

            return prepare_prompts(
                config.corpus, config.tokenizer, folder, baseline_scores, map_tasks, progress, only_find=only_find
            )
        case _:
            raise ValueError(f"task: {config.task}")


def scoring(config: Any, own: Any) -> Scoring:
    """How the model of a run is evaluated.

    Args:
        config: with the run's settings. own: with the settings that the run began with.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.evaluate.tokenizers import tokenizer_for
            from pipeline.tasks.translation import translation_scoring

            by = [tokenizer_for(one.corpus.target_language, one.evaluate) for one in (config, own)]
            return translation_scoring(config.decode, by[0], own.decode, by[1])
        case TaskName.language_model:
            from pipeline.tasks.language_model import language_model_scoring

            return language_model_scoring()
        case TaskName.classification:
            from pipeline.tasks.classification import classification_scoring

            return classification_scoring()
        case TaskName.masked_language_model:
            from pipeline.tasks.masked_language_model import masked_language_model_scoring

            return masked_language_model_scoring()
        case TaskName.prompt_response:
            from pipeline.tasks.prompt_response import response_scoring

            return response_scoring()
        case _:
            raise ValueError(f"task: {config.task}")


def make_task(config: Any, folder_of: Callable[[str], Path]) -> Task:
    """The task of a run.

    Args:
        config: the run's, with the sections that the task reads.
        folder_of: the folder of each prepared stage.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.evaluate.tokenizers import tokenizer_for
            from pipeline.tasks.translation import translation

            return translation(
                folder_of,
                model=config.model,
                batch=config.batch,
                label_smoothing=config.train.label_smoothing,
                search=config.decode,
                validation_beam=config.train.validation_beam,
                tokenize=tokenizer_for(config.corpus.target_language, config.evaluate),
                mix_share=config.corpus.mix.share,
            )
        case TaskName.language_model:
            from pipeline.tasks.language_model import language_model

            return language_model(
                folder_of,
                model=config.model,
                micro_tokens=config.batch.micro_tokens,
                label_smoothing=config.train.label_smoothing,
            )
        case TaskName.classification:
            from pipeline.tasks.classification import classification

            return classification(
                folder_of,
                model=config.model,
                micro_tokens=config.batch.micro_tokens,
                label_smoothing=config.train.label_smoothing,
            )
        case TaskName.masked_language_model:
            from pipeline.tasks.masked_language_model import masked_language_model

            return masked_language_model(
                folder_of,
                model=config.model,
                micro_tokens=config.batch.micro_tokens,
                label_smoothing=config.train.label_smoothing,
            )
        case TaskName.prompt_response:
            from pipeline.tasks.prompt_response import prompt_response

            return prompt_response(
                folder_of,
                corpus=config.corpus,
                model=config.model,
                batch=config.batch,
                label_smoothing=config.train.label_smoothing,
            )
        case _:
            raise ValueError(f"task: {config.task}")
