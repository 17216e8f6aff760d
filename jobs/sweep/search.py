"""Sweep: many trainings of one experiment with other settings, to find the best. Each trial is an ordinary run."""

import dataclasses
import time
from dataclasses import replace
from typing import Any

from transloom.jobs.config.compose import read_config
from transloom.jobs.config.schema import Config
from transloom.jobs.ray_cluster.session import living_nodes, room_for_workers
from transloom.jobs.runs.report import open_tracker
from transloom.jobs.runs.workspace import Run, identity, only_owner, output_dir
from transloom.jobs.sweep.settings import (
    RECORD_FILE,
    Origin,
    at_point,
    find_sweep,
    trial_config,
)
from transloom.jobs.terminal.console import begin_stage, console
from transloom.jobs.training.precision import warn_of_slow_precision, with_precision
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of, read_json, write_json
from transloom.pipeline.run_folder import CONFIG_FILE
from transloom.pipeline.sweep.config import Sampler, SweepConfig
from transloom.pipeline.sweep.space import corner_points, parse_space
from transloom.pipeline.sweep.study import Record, State, Study, earlier_trials
from transloom.pipeline.tasks.build import selecting_metric

STUDY_FILE, RESULT_FILE, BEST_FILE = "study.db", "result.json", "best.yaml"
SECONDS_FOR_ID = 10.0  # that the first trials wait for the id of the sweep's run in MLflow
STUDY_NAME = "sweep"


def sweep_for(config: Config, prepared: Prepared) -> tuple[Run, str]:
    """The sweep that a configuration names, as the folder that is its run in MLflow; and the hash of what its trials'
    scores depend on."""
    same = {name: getattr(config.sweep, name) for name in ("space", "points", "sampler", "stop", "grace", "reduction")}
    if config.sweep.sampler is Sampler.pbt:
        same |= {name: getattr(config.sweep, name) for name in ("population", "generations")}
    key = hash_of({"run": identity(config, prepared), "sweep": same, "warm_start": config.sweep.warm_start})
    name = config.name or f"{config.corpus.name}-sweep-{key[:8]}"
    return Run(name, output_dir(config) / "sweeps" / name, replace(config, name=name)), key


def done_before(config: Config, prepared: Prepared, origin: Origin) -> tuple[Run, dict[str, Any]] | None:
    """A sweep that has nothing left to do, and its result: then neither Ray nor MLflow need to start."""
    sweep, key = sweep_for(config, prepared)
    file = sweep.folder / RESULT_FILE
    if not file.exists():
        return None
    if origin.is_resumed:  # its configuration has the precision that `auto` came to
        key = read_json(sweep.folder / RECORD_FILE)["key"]
    result = read_json(file)
    return (sweep, result) if result.get("key") == _result_key(key, config) else None


def _result_key(key: str, config: Config) -> str:
    return hash_of({"key": key, "trials": config.sweep.trials, "seeds": config.sweep.seeds, "decode": config.decode})


def run_sweep(config: Config, prepared: Prepared, origin: Origin) -> tuple[Run, dict[str, Any]]:
    """What is left of a sweep, in a Ray session. SIGTERM lets the trials under way save a checkpoint.

    Raises:
        UserError: the name is that of another sweep, or no trial came to its end.
        Terminated: SIGTERM came.
    """
    sweep, key = sweep_for(config, prepared)
    record_file = sweep.folder / RECORD_FILE
    if record_file.exists() and not origin.is_resumed and read_json(record_file)["key"] != key:
        raise UserError(
            f"name: the sweep {sweep.name} exists and has other settings or data (see {sweep.folder / CONFIG_FILE}); "
            f"choose another name, or go on with it as it is: transloom sweep resume={sweep.name}"
        )
    # Once for all trials: their scores would not compare otherwise.
    sweep = replace(sweep, config=with_precision(sweep.config, sweep.folder / CONFIG_FILE))
    warn_of_slow_precision(sweep.config)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    if not record_file.exists():
        record = {"key": key, "choices": origin.choices, "shards": prepared.shards.manifest["key"]}
        write_json(record_file, record)
    known = read_json(record_file)
    with only_owner(sweep):
        # Before the tracker: Optuna and MLflow make their databases by the same library, which can make one at a time.
        study = _study(sweep, known["shards"])
        return sweep, _run(sweep, study, prepared, known)


def _run(sweep: Run, study: Study, prepared: Prepared, known: dict[str, Any]) -> dict[str, Any]:
    """Searches, trains the best with other seeds, and reports; the result as JSON values."""
    from transloom.jobs.sweep.report import evaluate_trial, report_sweep, write_best

    config = sweep.config
    with open_tracker(sweep, prepared) as tracker:
        tracker.set_tags({"sweep": sweep.name, "sweep.sampler": config.sweep.sampler.value})
        parent = tracker.run_id(timeout=SECONDS_FOR_ID)  # else the trials get it when they end, or by transloom sync

        def search(study: Study, settings: SweepConfig, base: Config, title: str) -> None:
            _search(study, settings, base, prepared, sweep, lambda: parent or tracker.run_id(), title)

        search(study, config.sweep, config, "sweep")
        best = _best(study)
        best_config = replace(trial_config(config, best), name=best.run)
        write_best(sweep.folder / BEST_FILE, best_config, known["choices"], sweep.name, best)
        runs = [best.run]
        seeds: list[Record] = []
        if config.sweep.seeds:
            again, settings = _seeds(sweep, best, best_config)
            search(again, settings, replace(best_config, name=None), "seeds of the best")
            seeds = [one for one in again.records.values() if one.score is not None]
            runs += [one.run for one in seeds if one.state is State.finished]
        # The test set is looked at for the best alone: who chooses among all by it would have nothing to test with.
        tests = {name: evaluate_trial(sweep, name, prepared) for name in runs}
        result = report_sweep(sweep, study, best, seeds, tests, tracker)
        if len(study.records) >= study.num_trials:  # else sweep.minutes ended it, and there is more to be done
            result["key"] = _result_key(known["key"], config)
        write_json(sweep.folder / RESULT_FILE, result)
    return result


def _study(sweep: Run, shards: str) -> Study:
    config, metric = sweep.config, selecting_metric(sweep.config.task, sweep.config.corpus)
    earlier: list[Record] = []
    for name in config.sweep.warm_start:
        folder = find_sweep(name, output_dir(config))
        before = read_config(folder / CONFIG_FILE)
        if before.task is not config.task:
            raise UserError(f"sweep.warm_start: {name} was of the task {before.task.value}: its scores do not compare")
        if before.sweep.sampler is Sampler.pbt:
            raise UserError(f"sweep.warm_start: the settings of {name} changed while it trained: they can't be learned")
        if read_json(folder / RECORD_FILE)["shards"] != shards:
            raise UserError(f"sweep.warm_start: {name} was on other data: its scores would not compare")
        found = earlier_trials(folder / STUDY_FILE, STUDY_NAME, parse_space(config.sweep.space), metric)
        if not found:
            raise UserError(f"sweep.warm_start: {name} has no finished trial with the parameters of this space")
        console.print(f"Learning from {len(found)} trials of {name}")
        earlier += found
    return Study(
        sweep.folder / STUDY_FILE,
        config.sweep,
        metric,
        name=STUDY_NAME,
        prefix=f"{sweep.name}-",
        seed=config.seed,
        tokens=config.train.max_steps * config.batch.tokens,
        earlier=earlier,
    )


def _seeds(sweep: Run, best: Record, base: Config) -> tuple[Study, SweepConfig]:
    """The best with other seeds: a small sweep of its own, a grid in which none is stopped."""
    seeds = [base.seed + i for i in range(1, sweep.config.sweep.seeds)]
    settings = SweepConfig(space={"seed": {"choices": seeds}}, sampler=Sampler.grid, trials=len(seeds))
    study = Study(
        sweep.folder / STUDY_FILE,
        settings,
        selecting_metric(base.task, base.corpus),
        name=f"seeds-of-{best.number}-{len(seeds)}",
        prefix=f"{sweep.name}-{best.number:03d}-seed",
        seed=base.seed,
        tokens=base.train.max_steps * base.batch.tokens,
    )
    return study, dataclasses.replace(settings, at_once=sweep.config.sweep.at_once)


def _search(
    study: Study, settings: SweepConfig, base: Config, prepared: Prepared, sweep: Run, parent: Any, title: str
) -> None:
    from transloom.jobs.sweep.table import Board
    from transloom.jobs.sweep.trials import Trials
    from transloom.jobs.sweep.tune import run_trials

    begin_stage(title)
    nodes = [node["Resources"] for node in living_nodes()]
    clusters = [at_point(base, point).cluster for point in corner_points(study.parameters)]
    if any(one.min_workers is not None for one in clusters):  # a trial would grow into the room of another
        raise UserError("cluster.min_workers: a sweep's trials have a fixed number of workers; set cluster.num_workers")
    room = min(room_for_workers(one, nodes) // one.num_workers for one in clusters)
    if room < 1:
        largest = max(one.num_workers for one in clusters)
        raise UserError(
            f"sweep.space: the cluster has no room for a trial of {largest} workers; see cluster.num_workers"
        )
    at_once = min(settings.at_once or room, room)
    names = [one.name for one in study.parameters]
    unfinished = sum(one.state is State.running for one in study.records.values())
    left = unfinished + max(0, study.num_trials - len(study.records))
    if not left:
        return
    console.print(f"{left} of {study.num_trials} trials to go, {at_once} at a time, over {', '.join(names)}")
    best = min(study.records.values(), key=lambda record: record.sort_key, default=None)
    if best and best.score is not None:
        score = f"{study.metric.title} {study.metric.shown(best.score)}"
        console.print(f"  the best so far: trial {best.number}, {score}")
    until = time.monotonic() + settings.minutes * 60 if settings.minutes else float("inf")
    known = list(study.records.values())
    with Board(sweep.name, names, study.num_trials, base.train.max_steps, known, study.metric) as board:
        trials = Trials(
            study, prepared, lambda record: trial_config(base, record), parent, board, until, settings.stop.value
        )
        run_trials(trials, at_once, base.cluster.max_failures, sweep)


def _best(study: Study) -> Record:
    finished = study.finalists()
    if not finished:
        reasons = [one.failure for one in study.records.values() if one.failure]
        said = f" The first that failed: {reasons[0]}" if reasons else ""
        raise UserError(f"no trial has come to its end, of {len(study.records)} that began.{said}")
    return min(finished, key=lambda record: record.sort_key)
