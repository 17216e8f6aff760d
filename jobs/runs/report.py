"""Reports of a run, to the tracker (MLflow) and to the terminal."""

import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from transloom.jobs.config.compose import read_config, to_dict
from transloom.jobs.config.schema import Config
from transloom.jobs.remote.package import submission
from transloom.jobs.runs.model import final_split, in_words, samples_of, tokens_of, training_of
from transloom.jobs.runs.summary import use_of
from transloom.jobs.runs.workspace import Run, locked, own_config, stage_folder
from transloom.jobs.terminal.console import clock, console
from transloom.model.build import architecture_of
from transloom.pipeline.data.clean import EXAMPLES
from transloom.pipeline.data.corpus import drawn_counts
from transloom.pipeline.data.corpus_config import CorpusConfig
from transloom.pipeline.data.mix import MIX
from transloom.pipeline.data.prepare import Prepared, unit_of
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import SCORING_LIBRARY
from transloom.pipeline.figures.curves import draw_curves
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.model_folder import count_saved
from transloom.pipeline.processor import processor_name
from transloom.pipeline.run_folder import (
    CONFIG_FILE,
    CURVES_FILE,
    EVALUATION_FOLDER,
    FIGURES_FOLDER,
    LOCK_FILE,
    MODEL_FOLDER,
    RESULT_FILE,
    RUN_RECORD,
    RUNS_FOLDER,
    SWEEPS_FOLDER,
    WEIGHTS_FOLDER,
)
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tasks.build import corpus_baselines, loss_unit, selecting_metric, token_columns
from transloom.pipeline.tasks.task import Evaluation, Metric
from transloom.pipeline.tracking.address import run_url, tracking_uri
from transloom.pipeline.tracking.run_page import end_dead_run
from transloom.pipeline.tracking.spool import last_status, read_points
from transloom.pipeline.tracking.tracker import SpoolTracker
from transloom.pipeline.tracking.uploader import MlflowTracker
from transloom.pipeline.train.checkpoint import lineage, snapshot_path

# MLflow's pages draw a curve for a metric with steps, and bars that compare runs for a metric without steps. Values
# have few digits, since MLflow's list of runs shows all digits; full values are in training.json and result.json.
AT_THE_END = 0


@contextmanager
def open_tracker(run: Run, prepared: Prepared, keep_status: bool = False) -> Iterator[MlflowTracker]:
    """The run's tracker, with the run's settings and data logged; closed with the status of the block's end.

    Args:
        keep_status: the block does not train, so an unfinished training stays KILLED or FAILED.
    """
    config = own_config(run)
    root = run.folder.parent.parent
    is_to_train = (
        run.training is None and not keep_status and run.folder.parent.name == RUNS_FOLDER
    )  # not for trials of a sweep
    done = "FINISHED"
    if keep_status and run.training is None:
        before = last_status(run.folder)
        done = before if before in ("FAILED", "FINISHED") else "KILLED"
    tags, metric = _tags(run, prepared), selecting_metric(config.task, config.corpus)
    tracker = MlflowTracker(config.tracking, root, run.folder, run.name, tags, is_to_train, metric)
    tracker.log_params(_params(config))
    tracker.log_artifact(run.folder / CONFIG_FILE)
    counts = prepared.corpus.manifest["counts"]
    for split, context in (("train", "training"), (MIX, "training"), ("validation", "validation"), ("test", "test")):
        if split not in counts["splits"]:
            continue
        name, digest = _dataset(config, prepared.corpus.folder, split)
        unit = unit_of(counts)
        size = counts["splits"][split][unit]
        tracker.log_dataset(name, digest, str(prepared.corpus.folder), {unit: size}, context)
    for name, columns in cleaning_tables(config, counts).items():
        tracker.log_table(columns, name)
    threading.Thread(target=_tell_page, args=(run, tracker), name="mlflow-page", daemon=True).start()
    status = "FAILED"
    try:
        yield tracker
        status = done
    except KeyboardInterrupt:  # also SIGTERM
        status = "KILLED"
        raise
    finally:
        tracker.close(status)


def end_dead_runs(root: Path, uri: str) -> None:
    """Marks as KILLED in MLflow the runs and sweeps of an output folder whose command was killed, or whose machine went
    down, before closing them. Runs of other machines, whose locks are not certain, and runs in a storage, which another
    machine may have resumed, stay unchanged until a command resumes them here."""
    for record in (*root.glob(f"{RUNS_FOLDER}/*/{RUN_RECORD}"), *root.glob(f"{SWEEPS_FOLDER}/*/{RUN_RECORD}")):
        folder = record.parent
        if last_status(folder) not in (None, "RUNNING") or not was_used_here(folder):
            continue
        with suppress(UserError, OSError, ValueError, KeyError), locked(folder):
            config = read_config(folder / CONFIG_FILE)
            if config.storage is None and config.tracking.enabled and end_dead_run(folder, uri):
                console.print(f"MLflow      the run {folder.name} is KILLED: the command that ran it is gone")


def was_used_here(folder: Path) -> bool:
    """Whether the last process that held a run's lock was on this machine."""
    lock = folder / LOCK_FILE
    return lock.exists() and lock.read_bytes().decode(errors="replace").endswith(f" on {socket.gethostname()}")


def _params(config: Config) -> dict[str, Any]:
    """The settings in the order of a run's page, without the places of files and reports, which do not change a run's
    quality. config.yaml has all settings."""
    settings = to_dict(config)
    for key in ("tracking", "race", "sweep", "output_dir", "storage", "name", "resume"):
        del settings[key]
    first = ("model", "schedule", "optimizer", "batch", "train", "seed")
    return {key: settings[key] for key in first} | settings


def _tell_page(run: Run, tracker: MlflowTracker) -> None:
    """Prints the address of the run's page, once a server has made the page; `transloom jobs` reads the address in the
    log. Prints nothing on a terminal: the progress line is there, and the command's end tells where to look."""
    uri = tracking_uri(run.config.tracking, run.folder.parent.parent)
    if uri.startswith("http") and not sys.stdout.isatty() and (run_id := tracker.run_id(timeout=300.0)):
        server = re.sub("(?<=://)[^/@]*@", "", uri)
        experiment = read_json(run.folder / RUN_RECORD)["experiment_id"]
        console.print(f"MLflow      {run_url(server, experiment, run_id)}")


def _dataset(config: Config, corpus: Path, split: str) -> tuple[str, str]:
    """Name and hash of a split, which tie scores to the split; for a split of two sides the target's hash."""
    files = read_json(corpus / MANIFEST)["files"]
    last = max(name for name in files if name.partition(".")[0] == split)
    return f"{config.corpus.name} {split}", files[last]["sha256"]


def _tags(run: Run, prepared: Prepared) -> dict[str, str]:
    """The origin of code, data and settings, so that the final score can be trusted."""
    versions = {
        name: metadata.version(name)
        for name in ("torch", "ray", "deepspeed", "mlflow", SCORING_LIBRARY, "sentencepiece")
    }
    pair = run.config.languages
    return {
        "task": run.config.task.value,
        "corpus": run.config.corpus.name,
        **({"languages": "-".join(pair)} if pair else {}),
        "corpus.hash": prepared.corpus.manifest["key"],
        **_cleaning(prepared),
        "tokenizer.hash": prepared.tokenizer.manifest["counts"]["sha256"],
        "shards.hash": prepared.shards.manifest["key"],
        "mlflow.source.git.commit": code_revision(),
        "environment.python": platform.python_version(),
        "environment.machine": f"{platform.machine()}, {processor_name()}",
        "environment.command": redacted(submission().get("command") or " ".join(["transloom", *sys.argv[1:]])),
        **{f"environment.{name}": version for name, version in versions.items()},
    }


def _cleaning(prepared: Prepared) -> dict[str, str]:
    """The counts of kept and dropped training pairs or documents; empty for a corpus prepared before these counts."""
    counts = prepared.corpus.manifest["counts"]
    if "read" not in counts:
        return {}
    dropped = ", ".join(f"{rule} {number}" for rule, number in counts["dropped"].items())
    unit = unit_of(counts)
    tags = {f"corpus.{unit}_read": str(counts["read"]), f"corpus.{unit}_left_out": dropped or "none"}
    if mix := counts.get(MIX):
        tags["corpus.mix"] = f"{counts['splits'][MIX]['pairs']} of {mix['read']} pairs to draw from"
    return tags


def cleaning_tables(config: Config, counts: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """What was left out and changed, with examples, and the sources of train: columns of tables, by their names.

    Args:
        counts: of the corpus's manifest.
    """
    tables: dict[str, dict[str, list[Any]]] = {}
    rules = {**counts.get("dropped", {}), **counts.get("changed", {})}
    if rules and all(isinstance(counts["examples"].get(rule, []), list) for rule in rules):
        examples = [counts["examples"].get(rule, []) for rule in rules]
        tables["cleaning"] = {"rule": list(rules), unit_of(counts): list(rules.values())} | {
            f"example {i + 1}": [some[i] if i < len(some) else "" for some in examples] for i in range(EXAMPLES)
        }
    if (sources := counts.get("sources")) and isinstance(config.corpus, CorpusConfig):
        columns = {"source": "name", "licence": "licence", "read": "read", "kept": "pairs"}
        tables["sources"] = {title: [source[key] for source in sources] for title, key in columns.items()}
        tables["sources"]["left out"] = [sum(source["dropped"].values()) for source in sources]
        tables["sources"]["weight"] = [source.weight for source in config.corpus.train.parsed] or [1.0] * len(sources)
        tables["sources"]["drawn an epoch"] = drawn_counts(config.corpus, counts)
    return tables


def code_revision() -> str:
    """The revision of the running code, with a mark if changed; without a checkout the version. A submitted job gets
    its revision from the submitting machine."""
    if told := submission().get("revision"):
        return told
    file = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", file.parent, *words], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)  # an environment may be inside another project's checkout
        return git("rev-parse", "HEAD").strip() + (" with changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        with suppress(metadata.PackageNotFoundError):
            return f"version {metadata.version('transloom')}"
        return "unknown"  # copied code, in an environment that has only the dependencies


def report_validation(tracker: SpoolTracker, run: Run, step: int, found: Evaluation) -> None:
    """A validation's loss and scores, tied to its snapshot, and its samples."""
    name = f"step-{step}"
    tracker.log_model(name, step, params={"weights": str(snapshot_path(run.folder / WEIGHTS_FOLDER, step))})
    scores = {f"validation/{key}": value for key, value in found.values().items()}
    dataset = _dataset(run.config, stage_folder(run.folder, "corpus"), "validation")
    tracker.log_metrics(scores, step, name, dataset)
    if found.samples:
        count = len(next(iter(found.samples.values())))
        columns = {column: list(values) for column, values in found.samples.items()}
        tracker.log_table({"step": [step] * count, **columns}, "validation_samples")


def report_training(run: Run, tracker: MlflowTracker) -> None:
    from transloom.jobs.training.initial import trained_parameters  # imports what imports this module

    training = run.training
    assert training is not None
    if origin := lineage(run.folder):
        tracker.set_tags({f"initial.{key}": value for key, value in origin.items()})
    if counts := trained_parameters(run):
        tracker.log_metrics(
            dict(zip(("training/trained_parameters", "training/parameters"), counts, strict=True)), AT_THE_END
        )
    column, tokens = list(tokens_of(training).items())[-1]
    tracker.log_metrics(
        {
            "training/seconds": round(training["seconds"], 1),
            f"training/{column}_tokens": tokens,
            f"training/{column}_tokens_per_second": round(tokens / max(training["seconds"], 1e-9)),
        },
        AT_THE_END,
    )
    results = [read_json(file) for file in (run.folder / EVALUATION_FOLDER).glob(f"*/{RESULT_FILE}")]
    own = [one for one in results if one.get("is_own_search", True) and one.get("training_ended", True)]
    if own:  # the search that the scores test/… belong to
        latest = max(own, key=lambda result: max(result["steps_averaged"]))
        if latest.get("step", max(latest["steps_averaged"])) < training["step"]:
            steps = in_words(latest["steps_averaged"])
            since = f"{steps}; the training went on to step {training['step']:,} since: evaluate again"
            tracker.set_tags({"test.steps": since})
    _draw(run, tracker)


def report_evaluation(run: Run, result: Mapping[str, Any], tracker: MlflowTracker) -> None:
    """Logs the scores with their signatures, the outputs, and the averaged model tied to its scores. Scores of another
    search than the run's own, or of an unfinished training, have separate names and replace no others."""
    apart, metric = names_apart(result), selecting_metric(run.config.task, run.config.corpus)
    step, steps = result["step"], in_words(result["steps_averaged"])
    name = f"averaged-{step}"
    final = final_split(result)
    signatures = {f"signature.{key}": score["signature"] for key, score in result[final].items() if score["signature"]}
    ended = "" if result["training_ended"] else f"; the training has not ended, step {step:,}"
    search = {f"test{apart}.search": result["search"]} if result["search"] else {}
    tracker.set_tags({f"test{apart}.steps": f"{steps}{ended}", **search})
    if result["is_own_search"]:
        tracker.set_tags(signatures | {"mlflow.note.content": _note(run, training_of(run, step), result)})
    tracker.log_model(name, step, folder=run.folder / MODEL_FOLDER, params={"average_of_steps": steps, **signatures})
    corpus = stage_folder(run.folder, "corpus")
    for split, prefix in (("test", f"test{apart}/"), ("validation", f"averaged{apart}/validation_")):
        if split not in result:
            continue
        digits = max(2, metric.digits)
        scores = {f"{prefix}{key}": round(score["value"], digits) for key, score in result[split].items()}
        for baseline, value in result.get("baselines", {}).get(split, {}).items():
            scores[f"{prefix}{metric.name}_of_{_metric_word(baseline)}"] = round(value, digits)
        tracker.log_metrics(scores, AT_THE_END, name, _dataset(run.config, corpus, split))
    if final == "test":
        test = result["test"]
        more = {f"{key}_half_width": score.get("half_width") for key, score in test.items()}
        more |= {"length_ratio": test[metric.name].get("length_ratio"), "seconds": result["seconds"]["test"]}
        known = {f"test{apart}/{key}": round(value, 3) for key, value in more.items() if value is not None}
        tracker.log_metrics(known, AT_THE_END)
    if columns := samples_of(result):
        of_model = "averaged_" if final == "validation" else ""  # the training's validations have a table, too
        tracker.log_table(columns, f"{of_model}{final}_samples{apart}")
    artifacts = f"evaluation{apart}"
    for file in sorted(Path(result["folder"]).glob("*.hypotheses")):
        tracker.log_artifact(file, artifacts)
    tracker.log_artifact(Path(result["folder"]) / RESULT_FILE, artifacts)
    for file in sorted(Path(result["folder"]).glob("*.png")):
        tracker.log_figure(file)
    _draw(run, tracker)  # again, with the averaged model's score


def _metric_word(name: str) -> str:
    """The name in the form of a metric's key: 5-gram of bytes -> 5-gram_of_bytes."""
    return re.sub(r"[^\w.-]+", "_", name)


def names_apart(result: Mapping[str, Any]) -> str:
    """The suffix of names in MLflow for another search than the run's own, or an unfinished training: _<search>,
    _step<n> or both; else empty."""
    search = "" if result["is_own_search"] else f"_{result['label']}"
    return search + ("" if result["training_ended"] else f"_step{result['step']}")


def _note(run: Run, training: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The note at the top of the run's page, in Markdown: scores, model, data and folder."""
    config, model = run.config, run.config.model
    counts = read_json(stage_folder(run.folder, "corpus") / MANIFEST)["counts"]
    unit, splits = unit_of(counts), counts["splits"]
    present = [split for split in ("train", MIX, "validation", "test") if split in splits]
    sizes = ", ".join(f"{splits[split][unit]:,} {split}" for split in present)
    pair = config.languages
    steps = in_words(result["steps_averaged"])
    so_far = "" if result["training_ended"] else "has not ended: "
    column, tokens = list(tokens_of(training).items())[-1]
    final, origin = final_split(result), lineage(run.folder)
    use = use_of(run, run.name)
    lines = {
        final.capitalize(): f"{_scores_in_words(result, selecting_metric(config.task, config.corpus))}",
        "Model": f"{architecture_of(model)}, {_shape_in_words(model)}, {count_saved(run.folder / MODEL_FOLDER):,} "
        f"parameters, averaged over steps {steps}",
        "Data": f"{config.corpus.name}{f', {pair[0]}-{pair[1]}' if pair else ''}: {unit} {sizes}",
        "Training": f"{so_far}{training['step']:,} steps in {clock(training['seconds'])}, {tokens:,} {column} tokens, "
        f"{tokens / max(training['seconds'], 1e-9):,.0f}/s",
        use.split()[1].capitalize(): f"`{use}`",
        **({"Began with": f"`{origin['model']}`, SHA-256 {origin['sha256'][:12]}…"} if origin else {}),
        "Folder": f"`{run.folder}`",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def _scores_in_words(result: Mapping[str, Any], metric: Metric) -> str:
    """In Markdown: **accuracy 0.91** (`signature`), loss 2.13, beam 4."""
    final = final_split(result)
    scores, baselines = result[final], result.get("baselines", {}).get(final, {})
    own = scores[metric.name]
    signature = f" (`{own['signature']}`)" if own["signature"] else ""
    others = "".join(f", {name} {score['value']:.2f}" for name, score in scores.items() if name != metric.name)
    others += "".join(f"; a {name} has {metric.shown(value)}" for name, value in baselines.items())
    search = f", {result['search']}" if result["search"] else ""
    return f"**{metric.title} {metric.shown(own['value'])}**{signature}{others}{search}"


def _shape_in_words(model: Any) -> str:
    """6 + 6 layers, d_model 512."""
    return f"{' + '.join(map(str, model.depths))} layers, d_model {model.d_model}"


def _draw(run: Run, tracker: MlflowTracker) -> None:
    path = run.folder / FIGURES_FOLDER / CURVES_FILE
    title, task = f"{run.name} ({run.config.corpus.name})", run.config.task
    counts = read_json(stage_folder(run.folder, "corpus") / MANIFEST)["counts"]
    baselines = corpus_baselines(task, counts).get("validation")
    points = read_points(run.folder)
    metric = selecting_metric(task, run.config.corpus)
    draw_curves(points, path, title, metric, token_columns(task), baselines, loss_unit(task))
    tracker.log_figure(path)
