"""Train: launches Ray Train workers (jobs/worker.py), waits for them and says how it went."""

import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.cli import configuration
from jobs.cluster import ALLOCATOR, spare_cpus, worker_resources
from jobs.config import ClusterConfig
from jobs.console import begin_stage, console, following
from jobs.precision import warn_of_slow_precision
from jobs.preflight import checked_session, refuse_missing_tokenizer
from jobs.prepare import found_prepared, prepare_stage, refuse_long_sentences
from jobs.report import open_tracker, report_training
from jobs.run_model import called
from jobs.stopping import Terminated, on_sigterm
from jobs.stored import stored
from jobs.summary import print_cleaning, print_next, print_stages
from jobs.worker import train_worker
from jobs.workspace import (
    PROGRESS_FILE,
    STOP_FILE,
    TRAINING_FILE,
    Run,
    only_owner,
    own_search,
    run_for,
    stage_folder,
)
from pipeline.data.lines import read_lines
from pipeline.data.tokenizer import MODEL_FILE
from pipeline.disk import disk_trouble
from pipeline.errors import UserError
from pipeline.evaluate.tokenizers import refuse_unspaced, tokenizer_for
from pipeline.files import sha256_file
from pipeline.train.checkpoint import newest_checkpoint, read_manifest

# Ray tries for a minute to place the workers, by default for ever again: a cluster that has shrunk would look like a
# hang.
MINUTES_WITHOUT_ROOM = 10
SECONDS_TO_STOP = 600.0  # for a validation under way, a step and its checkpoint
LOST_PEER = re.compile(r"Connection (closed|reset) by peer|NCCL")  # what a worker says when another one is gone


def main(argv: list[str]) -> int:
    config = configuration("train", argv)
    refuse_missing_tokenizer(config)
    prepared = found_prepared(config)
    if prepared:
        print_cleaning(prepared)
    with checked_session(config, import_trainer):
        prepared = prepared or prepare_stage(config)
        run = run_for(config, prepared)
        tell_kept_search(run)
        with only_owner(run), stored(run), open_tracker(run, prepared) as tracker:
            seconds = train_stage(run)
            report_training(run, tracker)
    print_stages({"train": seconds})
    print_next(f"transloom evaluate resume={shlex.quote(called(run))}", "transloom ui")
    return 0


def tell_kept_search(run: Run) -> None:
    """Says where a training's words name another search than the one that the run validates and is evaluated with."""
    own = own_search(run)
    if run.config.decode != own:
        console.print(
            f"Search      the run {run.name} keeps its own, {own.in_words()}; for scores of another one: transloom "
            f"evaluate resume={run.name} decode=…"
        )


def train_stage(run: Run) -> float | None:
    """Trains a run until it is finished, from its newest checkpoint if it has one; seconds, None if it was finished.

    SIGTERM lets the workers save a checkpoint of the step that they are at. Where they do not end within
    SECONDS_TO_STOP, since one hangs or none has come up, the command ends without them.

    Raises:
        UserError: what a worker refused, or the retries were used up.
        Terminated: SIGTERM came.
    """
    if is_trained(run):
        return None
    refuse_too_long(run)
    refuse_unspaced_targets(run)
    warn_of_slow_precision(run.config)
    begin_stage("train")
    started_at = time.monotonic()
    checkpoint = newest_checkpoint(run.folder / "checkpoints")  # warns of damaged ones, here where a person sees it
    if checkpoint is not None:
        refuse_exchanged_tokenizer(run, checkpoint)
        console.print(f"  going on from {checkpoint.name}")
    stop_file = run.folder / STOP_FILE
    spare = 0 if run.config.cluster.gpus_per_worker > 0 else spare_cpus(run.config.cluster)
    stop_file.write_bytes(b"")  # before SIGTERM may write into the file
    with (
        following(run.folder / PROGRESS_FILE),
        on_sigterm(lambda: stop_file.write_bytes(b"SIGTERM\n"), SECONDS_TO_STOP),
    ):
        launch_workers(run, spare)
    if stop_file.stat().st_size:
        newest = newest_checkpoint(run.folder / "checkpoints")
        kept = f"with the checkpoint {newest.name}" if newest else "before its first step"
        raise Terminated(f"the run {run.name} was stopped, {kept}; resume={run.name} goes on from there")
    return time.monotonic() - started_at


def refuse_too_long(run: Run) -> None:
    """Before the hours of training, not in their midst; see `refuse_long_sentences`."""
    refuse_long_sentences(run.config, stage_folder(run.folder, "corpus"), stage_folder(run.folder, "shards"))


def refuse_exchanged_tokenizer(run: Run, checkpoint: Path) -> None:
    """
    Raises:
        UserError: the run's tokenizer is not the one that the checkpoint was trained with: the ids of its embeddings
            would mean other pieces.
    """
    trained_with = read_manifest(checkpoint).get("tokenizer")
    file = stage_folder(run.folder, "tokenizer") / MODEL_FILE
    present = sha256_file(file)
    if trained_with not in (None, present):
        raise UserError(
            f"{file}: has the SHA-256 {present}, and {checkpoint.name} of the run {run.name} was trained with the "
            f"tokenizer {trained_with}. Bring that file back, or start a new run"
        )


def refuse_unspaced_targets(run: Run) -> None:
    """
    Raises:
        UserError: BLEU would look for words between spaces where the language has none, and choose by 0 against 0.
    """
    config = run.config
    if config.evaluate.tokenize is None:
        tokenize = tokenizer_for(config.corpus.target_language)
        file = stage_folder(run.folder, "corpus") / "validation.target"
        where = f"corpus.target_language: is {config.corpus.target_language}, but the validation set's target"
        advice = "for example corpus.target_language=zh, or evaluate.tokenize=zh"
        refuse_unspaced(read_lines(file), tokenize, where, advice)


def is_trained(run: Run) -> bool:
    """Whether the training has ended, and would not go on for the limits that the configuration has now."""
    done, config = run.training, run.config.train
    if done is None:
        return False
    is_out_of_time = done["reason"] == "max_minutes" and 0 < config.max_minutes * 60 <= done["seconds"]
    has_lost_patience = done["reason"] == "patience" and 0 < config.patience <= done["patience"]
    return has_lost_patience or is_out_of_time or done["step"] >= config.max_steps


def import_trainer() -> None:
    """What launching workers imports, which takes seconds."""
    from jobs.ray_patches import trainer_class

    trainer_class()


def make_trainer(
    worker: Callable[[Mapping[str, Any]], Any],
    settings: Mapping[str, Any],
    cluster: ClusterConfig,
    folder: Path,
    reserve: float = 1.0,
) -> Any:
    """A TorchTrainer of `worker`, which gets `settings`, on the cluster's workers.

    Args:
        folder: for Ray's own files.
        reserve: what part of its CPUs and GPUs a worker reserves with Ray; less than all lets trainings take turns.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from jobs.process_group import NodeInterfaceConfig
    from jobs.ray_patches import trainer_class

    use_gpu = cluster.gpus_per_worker > 0
    resources = {kind: amount * reserve for kind, amount in worker_resources(cluster).items()}
    environment = dict(ALLOCATOR)
    if not use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    if reserve < 1:  # Ray would take the number of threads from what is reserved
        environment["OMP_NUM_THREADS"] = str(max(1, int(cluster.cpus_per_worker)))
    trainer = trainer_class()(
        worker,
        train_loop_config=dict(settings),
        scaling_config=ScalingConfig(num_workers=cluster.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=NodeInterfaceConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # A fresh name each time: Ray would take a known one for a run to resume. Ours resumes by its checkpoints.
            name=f"attempt-{time.time_ns()}",
            storage_path=str(folder),
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=MINUTES_WITHOUT_ROOM
            ),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    trainer.is_alone = not cluster.address
    return trainer


def launch_workers(run: Run, spare: int) -> None:
    """Has the workers train until they end; what is written into the run's file `stop`, which the caller has emptied,
    lets them save a checkpoint and end before that.

    Args:
        spare: CPUs that are free beside the workers, where validations are made meanwhile.
    Raises:
        UserError: what a worker refused, or the retries were used up.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import TrainingFailedError

    (run.folder / TRAINING_FILE).unlink(missing_ok=True)
    cluster = run.config.cluster
    trainer = make_trainer(train_worker, {"folder": str(run.folder), "spare_cpus": spare}, cluster, run.folder / "ray")
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        if message := disk_trouble(error, run.folder):
            raise UserError(message) from error
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            raise UserError(
                f"cluster.num_workers: for {MINUTES_WITHOUT_ROOM} minutes the cluster had no room for "
                f"{cluster.num_workers} workers any more; was a machine lost? Checkpoints are kept: the same command "
                f"goes on from the newest, and resume={run.name} cluster.num_workers=<fewer> does with what is left"
            ) from error
        raise UserError(
            f"training failed, and no retries are left (cluster.max_failures={cluster.max_failures}): {_cause(error)}. "
            "Checkpoints are kept: the same command goes on from the newest"
        ) from error
    outcome = result.return_value or {}
    if "user_error" in outcome:
        raise UserError(outcome["user_error"])


def _cause(error: BaseException) -> str:
    """What went wrong first: of a worker that died, the others know only that it answers no more."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    firsts = {rank: one for rank, one in failures.items() if not LOST_PEER.search(str(one))} or failures
    if not firsts:
        return str(error)
    worker = min(firsts)
    if "process has died" in str(firsts[worker]):
        return f"the process of worker {worker} died; was it killed, or was memory short?"
    return f"worker {worker}: {type(firsts[worker]).__name__}: {firsts[worker]}"
