"""Train: trains a run to its end by workers (jobs/training/attempts.py), and reports the outcome."""

import time
from pathlib import Path

from transloom.jobs.runs.stopping import Terminated, on_sigterm
from transloom.jobs.runs.workspace import Run, stage_folder
from transloom.jobs.terminal.console import begin_stage, console, following
from transloom.jobs.training.attempts import train_in_attempts
from transloom.jobs.training.precision import warn_of_slow_precision
from transloom.jobs.training.prepare import refuse_long_sentences
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.text_tokenizer import tokenizer_file
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import refuse_unspaced
from transloom.pipeline.files import sha256_file
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, PROGRESS_FILE, STOP_FILE, WEIGHTS_FOLDER
from transloom.pipeline.tasks.build import selecting_metric
from transloom.pipeline.train.checkpoint import newest_checkpoint, read_manifest

SECONDS_TO_STOP = 600.0  # for a validation under way, a step and its checkpoint


def train_stage(run: Run) -> float | None:
    """Trains a run to its end, from its newest checkpoint, if any. Returns the seconds; None if it was finished before.

    At SIGTERM the workers save a checkpoint of the current step. If they do not end within SECONDS_TO_STOP, because a
    worker hangs or none has started, the command ends without them.

    Raises:
        UserError: a worker's own UserError, or the retries were used up.
        Terminated: SIGTERM came.
    """
    if is_trained(run):
        return None
    refuse_too_long(run)
    refuse_unspaced_targets(run)
    warn_of_slow_precision(run.config)
    begin_stage("train")
    started_at = time.monotonic()
    # Warns of damaged checkpoints here, where a person sees the warning.
    checkpoint = newest_checkpoint(run.folder / CHECKPOINTS_FOLDER)
    if checkpoint is None and any((run.folder / WEIGHTS_FOLDER).glob("step_*")):
        console.print(f"  there is no checkpoint in {run.folder / CHECKPOINTS_FOLDER} any more: begins again at step 0")
    if checkpoint is not None:
        refuse_exchanged_tokenizer(run, checkpoint)
        console.print(f"  going on from {checkpoint.name}")
    stop_file = run.folder / STOP_FILE
    stop_file.write_bytes(b"")  # before SIGTERM may write into the file
    with (
        following(run.folder / PROGRESS_FILE, selecting_metric(run.config.task, run.config.corpus)),
        on_sigterm(lambda: stop_file.write_bytes(b"SIGTERM\n"), SECONDS_TO_STOP),
    ):
        train_in_attempts(run, validate_on_spare_cpus=True)
    if stop_file.stat().st_size:
        newest = newest_checkpoint(run.folder / CHECKPOINTS_FOLDER)
        kept = f"with the checkpoint {newest.name}" if newest else "before its first step"
        raise Terminated(f"the run {run.name} was stopped, {kept}; resume={run.name} goes on from there")
    return time.monotonic() - started_at


def refuse_too_long(run: Run) -> None:
    """Calls `refuse_long_sentences` before the hours of training."""
    refuse_long_sentences(run.config, stage_folder(run.folder, "corpus"), stage_folder(run.folder, "shards"))


def refuse_exchanged_tokenizer(run: Run, checkpoint: Path) -> None:
    """
    Raises:
        UserError: the run's tokenizer is not the checkpoint's: the ids of the embeddings would mean other pieces.
    """
    trained_with = read_manifest(checkpoint).get("tokenizer")
    file = tokenizer_file(stage_folder(run.folder, "tokenizer"))
    present = sha256_file(file)
    if trained_with not in (None, present):
        raise UserError(
            f"{file}: has the SHA-256 {present}, and {checkpoint.name} of the run {run.name} was trained with the "
            f"tokenizer {trained_with}. Bring that file back, or start a new run"
        )


def refuse_unspaced_targets(run: Run) -> None:
    """
    Raises:
        UserError: the scores count words between spaces, but the target language has no spaces: all models score 0.
    """
    config = run.config
    if config.languages and config.evaluate.tokenize is None:
        tokenize = config.bleu_tokenizer
        file = stage_folder(run.folder, "corpus") / "validation.target"
        where = f"corpus.target_language: is {config.languages[1]}, but the validation set's target"
        advice = "for example corpus.target_language=zh, or evaluate.tokenize=zh"
        refuse_unspaced(read_lines(file), tokenize, where, advice)


def is_trained(run: Run) -> bool:
    """Whether the training has ended, and the configuration's current limits do not extend it."""
    done, config = run.training, run.config.train
    if done is None:
        return False
    is_out_of_time = done["reason"] == "max_minutes" and 0 < config.max_minutes * 60 <= done["seconds"]
    has_lost_patience = done["reason"] == "patience" and 0 < config.patience <= done["patience"]
    return has_lost_patience or is_out_of_time or done["step"] >= config.max_steps
