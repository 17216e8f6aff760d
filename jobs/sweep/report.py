"""What comes of a sweep: the best configuration as an experiment, pictures, its own page in MLflow, a summary."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from transloom.jobs.config.compose import read_config, recorded
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.report import open_tracker, report_evaluation
from transloom.jobs.runs.workspace import Run, find_run, only_owner, output_dir
from transloom.jobs.sweep.population import history_in_words, history_of, own_cost, print_history
from transloom.jobs.sweep.table import in_words, short_names, shown_value
from transloom.jobs.terminal.console import clock, console, table
from transloom.jobs.training.evaluate import evaluate_stage
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.files import atomic_write
from transloom.pipeline.run_folder import CONFIG_FILE
from transloom.pipeline.sweep.figures import draw_cost, draw_importance, draw_parallel, draw_population, draw_seeds
from transloom.pipeline.sweep.seeds import Chance, chance_of
from transloom.pipeline.sweep.study import Record, State, Study, importances
from transloom.pipeline.tasks.build import selecting_metric
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.uploader import MlflowTracker

# Groups that say where a training runs and what is reported, not what is trained.
NOT_OF_AN_EXPERIMENT = ("experiment", "sweep", "tracking")
SECTIONS = (
    *("task", "corpus", "clean", "tokenizer", "model", "batch", "optimizer", "schedule", "precision", "engine"),
    *("train", "decode", "evaluate", "cluster", "seed"),
)


# What a file of settings can't say of a population's best.
CHANGED = (
    "# Its settings changed while it trained: these are the last ones, and a run of this file is another training.\n"
    "# What came before is in result.json, under history; the model itself is that of the run {run}.\n"
)


def write_best(file: Path, config: Config, choices: Mapping[str, str], sweep: str, best: Record) -> None:
    """An experiment's file: the groups' options that the sweep had, and every setting of its best trial."""
    settings = recorded(config)
    groups = [{f"override /{group}": one} for group, one in choices.items() if group not in NOT_OF_AN_EXPERIMENT]
    content = {"defaults": [*groups, "_self_"], **{name: settings[name] for name in SECTIONS}}
    del content["cluster"]["address"]  # where it runs next is for whoever runs it to say
    metric, score = best.metric, best.score
    assert score is not None
    note = f"# The best of the sweep {sweep}, trial {best.number}: validation {metric.title} {metric.shown(score)}.\n"
    note += CHANGED.format(run=best.run) if best.generation else ""
    with atomic_write(file) as out:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        out.write(f"# @package _global_\n{note}# {in_words(best.point)}\n{text}".encode())


def evaluate_trial(sweep: Run, name: str, prepared: Prepared) -> dict[str, Any]:
    """Validation and, where there is a test set, test scores of a trained trial's averaged model, also on its page."""
    folder = find_run(name, output_dir(sweep.config))
    # Of the sweep, for in the file the server's password is left out.
    config = replace(read_config(folder / CONFIG_FILE), tracking=sweep.config.tracking)
    run = Run(name, folder, config)
    with only_owner(run), open_tracker(run, prepared) as tracker:
        result, _ = evaluate_stage(run)
        report_evaluation(run, result, tracker)
    return {split: result[split] for split in ("validation", "test") if split in result}


def report_sweep(
    sweep: Run,
    study: Study,
    best: Record,
    seeds: Sequence[Record],
    tests: Mapping[str, Mapping[str, Any]],
    tracker: MlflowTracker,
) -> dict[str, Any]:
    """The result as JSON values; with its pictures it goes to the sweep's page."""
    metric = study.metric
    records = list(study.records.values())
    names = [one.name for one in study.parameters]
    history = history_of(study.records, best, sweep.config)
    # What a member of a population came to is not by its own settings alone.
    shares, tokens = ({}, 0) if history else importances(records, study.parameters, metric)
    ranked = sorted(
        records,
        key=lambda one: (one is best, one.generation, one.state is State.finished, -one.sort_key),
        reverse=True,
    )
    second = next((one.score for one in ranked if one is not best and one.state is State.finished), None)
    chance = chance_of([one.score for one in (best, *seeds) if one.score is not None], second) if seeds else None
    result = {
        "sweep": sweep.name,
        "corpus": sweep.config.corpus.name,
        "parameters": names,
        "trials": [_row(one) for one in ranked],
        "best": {**_row(best), "test": tests[best.run].get("test"), "averaged": tests[best.run]["validation"]},
        "importance": {"shares": shares, "tokens": tokens},
        "spent": spent(records, best, sweep.config),
        "history": history,
        "seeds": [{**_row(one), **tests.get(one.run, {})} for one in seeds],
        "chance": vars(chance) if chance else None,
    }
    figures = sweep.folder / "figures"
    title = f"{sweep.name} ({sweep.config.corpus.name})"
    if history:
        pictures = [draw_population(study.records, study.parameters, best, figures / "population.png", title)]
    else:
        pictures = [draw_parallel(records, study.parameters, best, figures / "parallel.png", title)]
        pictures.append(draw_cost(records, best, figures / "cost.png", title, study.grace))
    if shares:
        pictures.append(draw_importance(shares, tokens, figures / "importance.png", title, metric))
    if chance:
        pictures.append(draw_seeds(chance, figures / "seeds.png", title, metric))
    for picture in pictures:
        tracker.log_figure(picture)
    tracker.log_artifact(sweep.folder / "best.yaml")
    _log_table(sweep, result, tracker, metric)
    metrics = {f"sweep/best_validation_{metric.name}": best.score, "sweep/trials": len(records)}
    metrics |= {f"sweep/{key}": value for key, value in result["spent"].items()}
    if test := tests[best.run].get("test"):
        metrics[f"sweep/best_test_{metric.name}"] = test[metric.name]["value"]
    if chance:
        metrics |= {f"sweep/seeds_mean_{metric.name}": chance.mean, "sweep/seeds_deviation": chance.deviation}
    tracker.log_metrics({key: value for key, value in metrics.items() if value is not None}, len(records))
    tracker.set_tags(
        {f"sweep.best.{name}": shown_value(value) for name, value in best.point.items()}
        | {"sweep.best": best.run, "mlflow.note.content": _note(result, metric)}
    )
    return result


def _places(result: Mapping[str, Any]) -> list[str]:
    """The columns that say which trial it is."""
    return ["trial", *(["generation", "member", "parent"] if result.get("history") else [])]


def _row(one: Record) -> dict[str, Any]:
    return {
        "trial": one.number,
        "run": one.run,
        **({"generation": one.generation, "member": one.member, "parent": one.parent} if one.generation else {}),
        "point": one.point,
        "state": one.state.value,
        one.metric.name: one.score,
        "target_tokens": one.tokens,
        "seconds": one.seconds,
        "failure": one.failure,
    }


def spent(records: Sequence[Record], best: Record, config: Config) -> dict[str, float]:
    """Predicted tokens and CPU- or GPU-hours of all trials, and what all of them would have taken to their ends:
    as many tokens as the best, each at its own speed. In a population none ends early."""
    each = config.cluster.num_workers * (config.cluster.gpus_per_worker or config.cluster.cpus_per_worker) / 3600
    ran = [one for one in records if one.tokens]
    if best.generation:
        costs = [own_cost({one.number: one for one in records}, one) for one in ran]
        return {
            "target_tokens": sum(tokens for tokens, _ in costs),
            "device_hours": each * sum(seconds for _, seconds in costs),
        }
    return {
        "target_tokens": sum(one.tokens for one in ran),
        "full_target_tokens": len(ran) * best.tokens,
        "device_hours": each * sum(one.seconds for one in ran),
        "full_device_hours": each * sum(one.seconds * best.tokens / one.tokens for one in ran),
    }


def _log_table(sweep: Run, result: Mapping[str, Any], tracker: MlflowTracker, metric: Metric) -> None:
    file = sweep.folder / "tables" / "trials.json"
    file.unlink(missing_ok=True)  # rows are only ever added to a table, and this one is made anew
    rows = result["trials"]
    columns: dict[str, list[Any]] = {
        key: [one[key] for one in rows] for key in (*_places(result), "run", "state", metric.name)
    }
    columns |= {name: [one["point"].get(name) for one in rows] for name in result["parameters"]}
    columns |= {key: [one[key] for one in rows] for key in ("target_tokens", "seconds")}
    tracker.log_table(columns, "trials")


def _note(result: Mapping[str, Any], metric: Metric) -> str:
    best = result["best"]
    tested = ""
    if best["test"]:  # else nothing is held out for a test
        test = best["test"][metric.name]
        signature = f" (`{test['signature']}`)" if test["signature"] else ""
        tested = f", test {metric.title} {metric.shown(test['value'])}{signature}"
    lines = [
        f"{len(result['trials'])} trials on {result['corpus']}. The best is trial {best['trial']}: "
        f"{in_words(best['point'])}; validation {metric.title} {metric.shown(best[metric.name])}"
        f"{tested}.",
        _saved(result["spent"]),
        *([] if not result["history"] else ["How it was trained:", *history_in_words(result["history"], metric)]),
    ]
    if result["chance"]:
        lines.append(Chance(**result["chance"]).verdict(metric))
    return "\n\n".join(lines)


def millions(count: float) -> str:
    return f"{count / 1e6:.2f} million"


def _saved(spent: Mapping[str, float]) -> str:
    hours = f"{spent['device_hours']:.3g} device-hours"
    said = f"Spent {millions(spent['target_tokens'])} tokens and {hours} of training"
    if "full_target_tokens" not in spent:
        return f"{said}."
    share = spent["target_tokens"] / max(1, spent["full_target_tokens"])
    return (
        f"{said}; every trial to its end would have been {millions(spent['full_target_tokens'])} tokens and about "
        f"{spent['full_device_hours']:.3g} device-hours: stopping early saved {1 - share:.0%}."
    )


def print_sweep(sweep: Run, result: Mapping[str, Any]) -> None:
    """The trials, the best first, what matters, what chance does, and where everything lies."""
    metric = selecting_metric(sweep.config.task, sweep.config.corpus)
    names, places = result["parameters"], _places(result)
    rows = [
        [
            *("-" if one[key] is None else str(one[key]) for key in places),
            *(shown_value(one["point"][name]) if name in one["point"] else "-" for name in names),
            "" if one[metric.name] is None else metric.shown(one[metric.name]),
            f"{one['target_tokens']:,}",
            clock(one["seconds"]),
            one["state"] + (f": {one['failure']}" if one["failure"] else ""),
        ]
        for one in result["trials"]
    ]
    columns = [*places, *short_names(names), f"validation {metric.title}", "tokens", "training", ""]
    count = len(names) + len(places) - 1
    console.print(table(f"\n{sweep.name}", columns, rows, right=(0, count + 1, count + 2, count + 3)))
    if result.get("history"):
        print_history(result["history"], names, short_names(names), metric)
    if shares := result["importance"]["shares"]:
        tokens = millions(result["importance"]["tokens"])
        parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        console.print(
            f"\nShare of the variance that each explains (fANOVA, {metric.title} after {tokens} tokens): {parts}"
        )
    console.print(f"\n{_saved(result['spent'])}")
    best = result["best"]
    averaged, tested = best["averaged"][metric.name], ""
    if best["test"]:
        test = best["test"][metric.name]
        signature = f" ({test['signature']})" if test["signature"] else ""
        tested = f", and test {metric.title} {metric.shown(test['value'])}{signature}"
    console.print(f"\nThe best: trial {best['trial']}, {in_words(best['point'])}", style="bold")
    console.print(
        f"validation {metric.title} {metric.shown(best[metric.name])}; of its averaged model "
        f"{metric.shown(averaged['value'])}{tested}\n"
        + ("No other trial was tested: the best" if tested else "Nothing is held out for a test: the best")
        + " was chosen on the validation set."
    )
    if result["chance"]:
        _print_seeds(result, metric)
    console.print(f"\nRun          {best['run']}")
    console.print(f"Experiment   {sweep.folder / 'best.yaml'}")
    console.print(f"Pictures     {sweep.folder / 'figures'}")
    console.print(f"Figures      {sweep.folder / 'result.json'}")


def _print_seeds(result: Mapping[str, Any], metric: Metric) -> None:
    rows = []
    for one in (result["best"], *result["seeds"]):
        tested = metric.shown(one["test"][metric.name]["value"]) if one.get("test") else ""
        rows.append([str(one["point"].get("seed", "its own")), metric.shown(one[metric.name]), tested, one["run"]])
    scores = [one["test"][metric.name]["value"] for one in (result["best"], *result["seeds"]) if one.get("test")]
    columns = ["seed", f"validation {metric.title}", f"test {metric.title}", "run"]
    if not scores:  # nothing is held out for a test
        columns, rows = [columns[0], columns[1], columns[3]], [[row[0], row[1], row[3]] for row in rows]
    console.print(table("\nThe best with other seeds", columns, rows, tuple(range(len(columns) - 1))))
    console.print(Chance(**result["chance"]).verdict(metric))
    if len(scores) > 1:
        mean, deviation = metric.shown(statistics.mean(scores)), metric.shown(statistics.stdev(scores))
        console.print(f"Test {metric.title} {mean}, standard deviation {deviation}, over {len(scores)} seeds.")
