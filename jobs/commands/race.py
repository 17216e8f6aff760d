"""Race: several models on one corpus for equal training time, each an ordinary run; then their scores, speeds and costs
in a table and a picture."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transloom.jobs.cli import configuration
from transloom.jobs.config.compose import load_config, with_absolute_paths
from transloom.jobs.config.messages import CONTENDERS
from transloom.jobs.config.schema import Config, RaceConfig
from transloom.jobs.ray_cluster.preflight import refuse_missing_tokenizer
from transloom.jobs.ray_cluster.session import ALLOCATOR, ray_session
from transloom.jobs.runs.report import open_tracker
from transloom.jobs.runs.summary import print_next, use_of
from transloom.jobs.runs.workspace import Run, identity, only_owner, output_dir, run_for
from transloom.jobs.terminal.console import clock, console, quantity, table
from transloom.jobs.training.prepare import found_prepared, prepare_stage
from transloom.jobs.training.stages import done_before, finish_run
from transloom.model.build import ModelConfig, architecture_of
from transloom.model.flops import count_parameters, training_flops
from transloom.pipeline.compare.course import validation_course
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.disk import refuse_unwritable
from transloom.pipeline.errors import UserError
from transloom.pipeline.figures.race import Course, draw_race
from transloom.pipeline.files import hash_of, read_json, write_json
from transloom.pipeline.processor import processor_name
from transloom.pipeline.tasks.build import flops_columns, selecting_metric, token_columns
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import read_points

RESULT_FILE, PICTURE_FILE = "race.json", "race.png"
SHARED_SECTIONS = ("task", "corpus", "clean", "tokenizer", "precision", "evaluate", "cluster", "tracking")


def main(argv: list[str]) -> int:
    config = configuration("race", argv)
    if config.resume:
        raise UserError("resume: a race goes on when its command is given again; to resume one run: transloom train")
    contenders = contenders_of(config, argv)
    prepared = found_prepared(config)
    done = _done_before(config, contenders, prepared) if prepared else None
    if done is None:
        refuse_missing_tokenizer(config)
        refuse_unwritable(output_dir(config))
        with ray_session(config.cluster):
            done = _race(config, contenders, prepared or prepare_stage(config))
    folder, result = done
    print_race(result, folder, selecting_metric(config.task, config.corpus), token_columns(config.task))
    uses = (use_of(Run(one["run"], Path(one["folder"]), config), one["run"]) for one in result["runs"].values())
    print_next("transloom ui", *uses)
    return 0


def contenders_of(config: Config, words: Sequence[str]) -> dict[str, Config]:
    """Each contender's configuration: the command's words, which have the last say, on top of the contender's own.

    Raises:
        UserError: there are not two, or they do not compare.
    """
    if len(config.race.contenders) < 2:
        raise UserError(
            "race.contenders: names at least two to be compared, as experiment=attention_vs_recurrence does, or "
            f"{CONTENDERS}"
        )
    if not config.train.max_minutes:
        raise UserError("train.max_minutes: must say how long each contender trains, for example train.max_minutes=8")
    given = {word.partition("=")[0] for word in words}
    configs: dict[str, Config] = {}
    for name, own in config.race.contenders.items():
        where = f"race.contenders.{name}"
        try:
            one = load_config([*words, *(word for word in own if word.partition("=")[0] not in given)])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        one = replace(with_absolute_paths(one), race=RaceConfig())
        for section in (*SHARED_SECTIONS, "seed", "output_dir"):
            if getattr(one, section) != getattr(config, section):
                raise UserError(f"{where}: changes {section}, which must be the same for all who are compared")
        if one.train.max_minutes != config.train.max_minutes:
            raise UserError(f"{where}: changes train.max_minutes: the time is the same for all who are compared")
        same = [other for other, its in configs.items() if its == one]
        if same:
            raise UserError(f"{where}: is the same as {same[0]}; was what differs given on the command line?")
        configs[name] = one
    return configs


def _runs(config: Config, contenders: Mapping[str, Config], prepared: Prepared) -> tuple[Path, dict[str, Config]]:
    """The race's folder, and the configurations with the names of their runs."""
    key = hash_of([identity(one, prepared) for one in contenders.values()])
    name = config.name or f"{config.corpus.name}-race-{key[:8]}"
    configs = {one: replace(its, name=f"{name}-{one}") for one, its in contenders.items()}
    return output_dir(config) / "races" / name, configs


def _done_before(
    config: Config, contenders: Mapping[str, Config], prepared: Prepared
) -> tuple[Path, dict[str, Any]] | None:
    """A race that has nothing left to do: then neither Ray nor MLflow need to start."""
    folder, configs = _runs(config, contenders, prepared)
    if not (folder / RESULT_FILE).exists():
        return None
    found = {name: done_before(one, prepared) for name, one in configs.items()}
    finished = {name: one for name, one in found.items() if one is not None}
    result = read_json(folder / RESULT_FILE)
    return (folder, result) if len(finished) == len(found) and result["key"] == _key(config, finished) else None


def _key(config: Config, finished: Mapping[str, tuple[Run, Mapping[str, Any]]]) -> str:
    """Changes with everything that a race's result is made of."""
    results = {name: [result["folder"], run.training] for name, (run, result) in finished.items()}
    return hash_of({"results": results, "lengths": config.race.lengths})


def _race(config: Config, contenders: Mapping[str, Config], prepared: Prepared) -> tuple[Path, dict[str, Any]]:
    folder, configs = _runs(config, contenders, prepared)
    finished: dict[str, tuple[Run, dict[str, Any]]] = {}
    runs = {name: run_for(one, prepared) for name, one in configs.items()}
    _refuse_unequal_precision(runs)
    for name, run in runs.items():
        console.print(f"{name}: {config.train.max_minutes:g} minutes of training", style="bold")
        finished[name] = run, finish_run(run, prepared)[0]
    metric = selecting_metric(config.task, config.corpus)
    vocab_size = prepared.tokenizer.manifest["counts"]["vocab_size"]
    precision = next(iter(runs.values())).config.precision
    speeds: dict[str, list[float]] = {}
    if config.languages:  # a language model trains on texts of its context, at the speed that the table has
        console.print("measuring speed by sentence length …")
        models = {name: one.model for name, one in configs.items()}
        speeds = _speeds(replace(config, precision=precision), models, vocab_size)
    result = {
        "key": _key(config, finished),
        "corpus": config.corpus.name,
        "max_minutes": config.train.max_minutes,
        "machine": f"{platform.machine()}, {processor_name()}",
        "workers": config.cluster.num_workers,
        "precision": precision.dtype.value,
        "lengths": config.race.lengths if speeds else [],
        "runs": {name: _outcome(run, found, vocab_size, metric) for name, (run, found) in finished.items()},
    }
    for name, one in result["runs"].items():
        one["speed_by_length"] = dict(zip(map(str, config.race.lengths), speeds[name], strict=True)) if speeds else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT_FILE, result)
    _draw(result, folder / PICTURE_FILE, metric)
    for run, _ in finished.values():
        with only_owner(run), open_tracker(run, prepared) as tracker:
            tracker.log_figure(folder / PICTURE_FILE)
            tracker.log_artifact(folder / RESULT_FILE, "race")
    return folder, result


def _refuse_unequal_precision(runs: Mapping[str, Run]) -> None:
    """
    Raises:
        UserError: a contender that began on another machine has another precision than the others.
    """
    found = {name: run.config.precision.dtype.value for name, run in runs.items()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} has {precision}" for name, precision in found.items())
        raise UserError(f"precision: must be the same for all who are compared: {told}. Race anew with another name=")


def _speeds(config: Config, models: Mapping[str, ModelConfig], vocab_size: int) -> dict[str, list[float]]:
    """Measured as a training worker works: its CPUs or GPU, and its allocator's settings."""
    import ray

    cluster = config.cluster
    environment = {**ALLOCATOR, "OMP_NUM_THREADS": str(max(1, int(cluster.cpus_per_worker)))}
    task = ray.remote(
        num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker, runtime_env={"env_vars": environment}
    )(_measure_speeds)
    return ray.get(task.remote(config, models, vocab_size))


def _measure_speeds(config: Config, models: Mapping[str, ModelConfig], vocab_size: int) -> dict[str, list[float]]:
    import torch

    from transloom.pipeline.train.speed import speed_by_length

    return speed_by_length(
        models,
        config.race.lengths,
        tokens=config.batch.micro_tokens,
        vocab_size=vocab_size,
        precision=config.precision,
        device=torch.device("cuda" if config.cluster.gpus_per_worker else "cpu"),
    )


def _outcome(run: Run, result: Mapping[str, Any], vocab_size: int, metric: Metric) -> dict[str, Any]:
    """What is told of one contender: JSON values."""
    training, model = run.training, run.config.model
    assert training is not None
    seconds = max(training["seconds"], 1e-9)
    counts = {column: training[f"{column}_tokens"] for column in token_columns(run.config.task)}
    known = [split for split in ("test", "validation") if split in result]
    return {
        "run": run.name,
        "folder": str(run.folder),
        "architecture": architecture_of(model),
        "parameters": count_parameters(model, vocab_size),
        "steps": training["step"],
        "seconds": seconds,
        **{f"{column}_tokens_per_second": count / seconds for column, count in counts.items()},
        "flops": run.config.train.passes
        * training_flops(model, vocab_size, *map(counts.__getitem__, flops_columns(run.config.task, model))),
        metric.name: {split: result[split][metric.name] for split in known},
        "search": result.get("search"),
        "steps_averaged": result["steps_averaged"],
        "curve": _curve(run, vocab_size, metric),
    }


def _curve(run: Run, vocab_size: int, metric: Metric) -> list[dict[str, float]]:
    """Seconds of training, floating-point operations and score at each validation."""
    training = run.training
    assert training is not None
    course = validation_course(read_points(run.folder), training["validations"])
    columns = flops_columns(run.config.task, run.config.model)
    return [
        {
            "step": one["step"],
            "seconds": one["seconds"],
            "flops": run.config.train.passes
            * training_flops(run.config.model, vocab_size, *(round(one[f"{column}_tokens"]) for column in columns)),
            metric.name: one[metric.name],
        }
        for one in course
    ]


def _draw(result: Mapping[str, Any], path: Path, metric: Metric) -> None:
    courses = {
        name: Course(
            seconds=[point["seconds"] for point in one["curve"]],
            flops=[point["flops"] for point in one["curve"]],
            scores=[point[metric.name] for point in one["curve"]],
            speed={int(length): speed for length, speed in one["speed_by_length"].items()},
        )
        for name, one in result["runs"].items()
    }
    title = f"{result['corpus']}, {result['max_minutes']:g} minutes of training each, {result['precision']}"
    draw_race(courses, path, title, metric)


def print_race(result: Mapping[str, Any], folder: Path, metric: Metric, tokens: Sequence[str]) -> None:
    """A row for each contender, its speeds by sentence length where they were measured, and where everything lies.

    Args:
        tokens: the columns whose tokens are counted.
    """
    runs: Mapping[str, Mapping[str, Any]] = result["runs"]
    splits = [split for split in ("validation", "test") if all(split in one[metric.name] for one in runs.values())]
    rows = [
        [
            name,
            f"{one['parameters']:,}",
            f"{one['steps']:,}",
            clock(one["seconds"]),
            *(f"{one[f'{column}_tokens_per_second']:,.0f}" for column in tokens),
            quantity(one["flops"]) + "FLOP",
            *(metric.shown(one[metric.name][split]["value"]) for split in splits),
        ]
        for name, one in runs.items()
    ]
    columns = ["", "parameters", "steps", "training", *(f"{column} tok/s" for column in tokens), "cost"]
    columns += [f"{split} {metric.title}" for split in splits]
    title = f"\n{result['corpus']}, {result['max_minutes']:g} minutes each"
    console.print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
    ways = {(one[metric.name][splits[-1]]["signature"], one.get("search") or "") for one in runs.values()}
    for way in ("; ".join(filter(None, one)) for one in sorted(ways)):
        console.print(f"{metric.title} of the averaged models{way and f': {way}'}")
    if lengths := [str(length) for length in result["lengths"]]:
        rows = [[name, *(f"{one['speed_by_length'][length]:,.0f}" for length in lengths)] for name, one in runs.items()]
        title = "\nTarget tokens/s of one worker in training, by sentence length (tokens)"
        console.print(table(title, ["", *lengths], rows, right=tuple(range(1, len(lengths) + 1))))
    console.print(
        f"\nTokens are counted without padding ({result['machine']}, {result['workers']} workers, "
        f"{result['precision']}).\n\nPicture  {folder / PICTURE_FILE}\nFigures  {folder / RESULT_FILE}"
    )
    for name, one in runs.items():
        console.print(f"Run      {one['run']} ({name})")
