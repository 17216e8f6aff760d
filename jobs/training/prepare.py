"""Prepare: cleans a corpus, trains the tokenizer, writes the shards."""

from dataclasses import replace
from pathlib import Path

from transloom.jobs.config.compose import to_dict
from transloom.jobs.config.schema import Config
from transloom.jobs.ray_cluster.session import map_over_cluster
from transloom.jobs.runs.summary import print_cleaning
from transloom.jobs.runs.workspace import bring_stage, output_dir, prepared_before
from transloom.jobs.terminal.console import StatusLine, begin_stage, console, counter
from transloom.pipeline.data.corpus_config import CorpusConfig
from transloom.pipeline.data.longest import refuse_longer
from transloom.pipeline.data.mix import MIX
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prompts import PromptsConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import NotBuilt
from transloom.pipeline.secrets import HIDDEN
from transloom.pipeline.tasks.build import TaskName, prepare_data, refuse_wrong_corpus, with_local_corpus
from transloom.pipeline.tracking.tracker import flatten


def found_prepared(config: Config) -> Prepared | None:
    """The prepared stages, here or in the storage; None where a stage is missing. Needs no Ray."""
    if config.resume:
        return prepared_before(config)
    config = with_local_data(config)
    looked_for = None
    # Each missing stage is fetched from the storage, once; then the next one is looked for.
    while True:
        try:
            return prepare_data(config, output_dir(config), only_find=True)
        except NotBuilt as missing:
            (folder,) = missing.args
            if folder != looked_for and bring_stage(config, folder):
                looked_for = folder
                continue
            refuse_wrong_corpus(config)  # before the start of Ray
            return None


def with_local_data(config: Config) -> Config:
    """The configuration with a corpus of local files; files behind URLs are fetched into the output folder.

    Raises:
        UserError: see `with_local_corpus`; or a URL comes from a run's config.yaml, which does not keep its password.
    """
    for key, value in flatten({"corpus": to_dict(config)["corpus"]}).items():
        if HIDDEN in value:
            raise UserError(
                f"{key}: the password or token in {value} is not kept with the run, and the data prepared with it are "
                "gone. Prepare them again first (transloom prepare, with the whole address), or start a new run"
            )
    status = StatusLine()
    try:
        return replace(config, corpus=with_local_corpus(config, output_dir(config) / "downloads", counter(status)))
    finally:
        status.clear()


def prepare_stage(config: Config) -> Prepared:
    """Builds the stages that are missing, with the work spread over the cluster. A resumed run uses its earlier stages,
    and no longer needs the raw corpus.

    Raises:
        UserError: see `prepare_data`.
    """
    if config.resume and (found := prepared_before(config)):
        return found
    begin_stage("prepare")
    local = with_local_data(config)
    status = StatusLine()
    try:
        prepared = prepare_data(local, output_dir(config), map_over_cluster, counter(status))
    finally:
        status.clear()
    print_cleaning(prepared, config.corpus)
    return prepared


def _tell_long_examples(config: Config, shards: Path) -> None:
    """Prints how many prompts the model's context cuts, and how many examples are left out.

    Raises:
        UserError: the context has no room for a prompt.
    """
    from transloom.pipeline.data.prompt_batches import long_examples

    assert isinstance(config.corpus, PromptsConfig)
    for line in long_examples(shards, config.model, config.corpus):
        console.print(f"  {line}")


def refuse_long_sentences(config: Config, corpus: Path, shards: Path) -> None:
    """
    Args:
        corpus, shards: folders of finished stages.
    Raises:
        UserError: a sentence of train is longer than a micro-batch, or a sentence of train or validation is longer than
            the model's max_positions.
    """
    if config.task is TaskName.prompt_response:
        _tell_long_examples(config, shards)
    if config.task is not TaskName.translation:
        return  # long documents are cut into pieces, long prompts by a setting
    trained = ("train", MIX) if isinstance(config.corpus, CorpusConfig) and config.corpus.mix.share else ("train",)
    if (room := config.model.max_positions) is not None:
        for split in (*trained, "validation"):
            refuse_longer(corpus, shards, split, "model.max_positions", room)
    for split in trained:
        refuse_longer(corpus, shards, split, "batch.micro_tokens", config.batch.micro_tokens)
