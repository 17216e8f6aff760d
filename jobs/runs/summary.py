"""The summary at a job's end: stages with their times, scores, samples, folders, next commands."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, cast

from transloom.jobs.remote.package import submission
from transloom.jobs.runs.model import called, final_split, in_words, samples_of, tokens_of, training_of
from transloom.jobs.runs.workspace import Run, stage_folder
from transloom.jobs.terminal.console import clock, console, table
from transloom.model.build import architecture_of
from transloom.pipeline.data.clean import RULES, CleanConfig
from transloom.pipeline.data.corpus import drawn_counts
from transloom.pipeline.data.corpus_config import CorpusConfig
from transloom.pipeline.data.mix import MIX
from transloom.pipeline.data.prepare import Prepared, unit_of
from transloom.pipeline.data.prompts import PromptsConfig, Template
from transloom.pipeline.files import MANIFEST, Stage, read_json
from transloom.pipeline.processor import processor_name
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, CURVES_FILE, FIGURES_FOLDER, MODEL_FOLDER
from transloom.pipeline.tasks.build import TaskName, selecting_metric, token_columns
from transloom.pipeline.tasks.task import Metric


def print_prepared(prepared: Prepared, metric: Metric, baselines: Mapping[str, Mapping[str, float]]) -> None:
    """
    Args:
        metric: of the baselines. baselines: see `corpus_baselines`.
    """
    rows = []
    for name in ("corpus", "tokenizer", "shards"):
        stage = getattr(prepared, name)
        rows.append([name, _seconds(None if stage.skipped else stage.seconds), str(stage.folder)])
    console.print(table("Prepared", ["stage", "time", "folder"], rows, right=(1,)))
    splits = prepared.corpus.manifest["counts"]["splits"]
    tokens = prepared.shards.manifest["counts"]["splits"]
    unit = unit_of(prepared.corpus.manifest["counts"])
    columns = [name for name in tokens["train"] if name.endswith("_tokens")]
    rows = [[split, f"{splits[split][unit]:,}", *(f"{tokens[split][name]:,}" for name in columns)] for split in splits]
    counts = prepared.tokenizer.manifest["counts"]
    asked = counts.get("requested_vocab_size", counts["vocab_size"])
    less = f", of {asked:,} asked for: the corpus has no more to give" if counts["vocab_size"] < asked else ""
    console.print(f"\nVocabulary: {counts['vocab_size']:,} pieces{less}")
    heads = ["split", unit, *(name.replace("_", " ") for name in columns)]
    console.print(table("\nCorpus", heads, rows, right=tuple(range(1, len(heads)))))
    for split, values in baselines.items():
        for name, value in values.items():
            console.print(f"Baseline: a {name} comes to {metric.shown(value)} {metric.title} on {split}")


# In a well aligned corpus less than 1 % of the pairs break a rule, since the limits are wide. More than 5 % are a sign
# of shifted lines, of a wrong file, or of a limit that does not fit the language.
LARGE_SHARE = 0.05


def print_cleaning(prepared: Prepared, corpus: Any = None) -> None:
    """As `print_cleaning_of`, with a warning of a tokenizer that changes documents."""
    print_cleaning_of(prepared.corpus, corpus)
    shards = prepared.shards.manifest["counts"]
    changed = sum(split.get("changed", 0) for split in shards["splits"].values())
    if changed and unit_of(prepared.corpus.manifest["counts"]) == "documents":
        console.print(
            f"\nwarning: {changed:,} documents do not come back from their tokens as they were, such as "
            f"{shards['changed_example']!r}: bits per byte are not those of the text. Take another tokenizer"
        )


def _setting_of(key: str, clean: Mapping[str, Any], corpus: Any) -> str:
    """The setting of a rule, by its key in the section clean, or in a corpus's own settings."""
    if key in clean:
        return f"clean.{key}={_word(clean[key])}"
    return f"corpus.{key}" if hasattr(corpus, key) else ""


def print_cleaning_of(stage: Stage, corpus: Any = None) -> None:
    """Prints how many training pairs or documents were read, held out and left out, by rule, with an example of each,
    and a warning for a large share. Prints nothing for a corpus prepared before these counts were recorded.

    Args:
        corpus: its settings, which say how often an epoch draws from the sources of pairs.
    """
    manifest = stage.manifest
    counts = manifest["counts"]
    # Only pairs are cleaned by the section clean; other corpora have settings of their own.
    has_section = "clean" in manifest["config"]
    settings = dataclasses.asdict(CleanConfig()) | manifest["config"]["clean"] if has_section else {}
    if "read" not in counts:
        return
    read, dropped = counts["read"], counts["dropped"]
    left_out = sum(dropped.values())
    unit = unit_of(counts)
    parts = [f"{counts['splits']['train'][unit]:,} kept", f"{left_out:,} left out ({left_out / read:.1%})"]
    held_out = counts["held_out"]
    parts += [f"{held_out[split]:,} held out for {split}" for split in ("validation", "test") if split in held_out]
    console.print(f"Cleaned     {read:,} training {unit} read: {', '.join(parts)}")
    if sources := counts.get("sources"):
        print_sources(sources, drawn_counts(corpus, counts) if isinstance(corpus, CorpusConfig) else None)
    if mix := counts.get(MIX):
        kept = counts["splits"][MIX]["pairs"]
        console.print(f"Mixed in    {mix['read']:,} pairs read: {kept:,} kept, {mix['read'] - kept:,} left out")
    changed = counts.get("changed", {})
    rows = [
        [
            f"{rule} (changed)" if rule in changed else rule,
            f"{number:,}",
            " ".join(_setting_of(key, settings, corpus) for key in RULES.get(rule, ())),
        ]
        for rule, number in sorted((*dropped.items(), *changed.items()), key=lambda item: -item[1])
    ]
    if rows:
        console.print(table("\nLeft out", ["rule", unit, "setting"], rows, right=(1,)))
        console.print("\nExamples", style="bold")
        for rule in (row[0].removesuffix(" (changed)") for row in rows):
            examples = counts["examples"][rule]
            for example in [examples] if isinstance(examples, str) else examples:  # older manifests have a single one
                console.print(f"  {rule}: {example}")
    asked = ("duplicate", "near_duplicate", *(() if has_section else ("contaminated",)))
    unasked = left_out - sum(dropped.get(rule, 0) for rule in asked)
    if unasked > LARGE_SHARE * read:
        rule = max(dropped.keys() - set(asked), key=lambda name: dropped[name])
        question = (
            "are validation and test parts of train, or does train repeat itself?"
            if rule == "contaminated"
            else "do the lines of both sides belong together, and do the limits fit the languages?"
        )
        console.print(
            f"\nwarning: {unasked / read:.1%} of the training {unit} were left out, most by {rule}. Look at the "
            f"examples{f': {question}' if unit == 'pairs' else ''}"
        )
    if has_section and (kept := counts.get("contaminated", 0) - dropped.get("contaminated", 0)):
        console.print(
            f"\nwarning: {kept:,} of the training pairs have a sentence that stands in validation or test, and stay "
            "(clean.decontaminate=false): scores on these sets are too good"
        )
    if shared := counts.get("test_in_validation"):
        console.print(
            f"\n{shared:,} of the {counts['splits']['test']['pairs']:,} test pairs have a sentence that stands in "
            "validation, too: the choice of settings by validation has seen them"
        )


def print_sources(sources: Sequence[Mapping[str, Any]], drawn: Sequence[int] | None = None) -> None:
    """Prints the counts of each source of train.

    Args:
        drawn: how many pairs of each an epoch draws; None: leave them out.
    """
    rows = []
    for place, source in enumerate(sources):
        counts = [source["read"], source["pairs"], source["held_out"], sum(source["dropped"].values())]
        counts += [] if drawn is None else [drawn[place]]
        rows.append([source["name"], *(f"{count:,}" for count in counts), source["licence"] or ""])
    heads = [
        "source",
        "read",
        "kept",
        "held out",
        "left out",
        *([] if drawn is None else ["drawn an epoch"]),
        "licence",
    ]
    console.print(table("\nSources", heads, rows, right=tuple(range(1, len(heads) - 1))))


def _counts(run: Run) -> dict[str, Any]:
    """The counts of the run's corpus."""
    return read_json(stage_folder(run.folder, "corpus") / MANIFEST)["counts"]


def _word(value: Any) -> str:
    value = value.value if isinstance(value, Enum) else value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(seconds: float | None) -> str:
    return "done before" if seconds is None else clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def print_stages(stages: Mapping[str, float | None]) -> None:
    rows = [[name, _seconds(seconds)] for name, seconds in stages.items()]
    console.print(table("\nStages", ["stage", "time"], rows, right=(1,)))


def print_result(run: Run, result: Mapping[str, Any]) -> None:
    """Prints scores with signatures, samples, speed and folders."""
    training = training_of(run, result["step"])
    metric, final = selecting_metric(run.config.task, run.config.corpus), final_split(result)
    rows = []
    for split in ("test", "validation"):
        for name, score in result.get(split, {}).items():
            value = metric.shown(score["value"]) if name == metric.name else f"{score['value']:.2f}"
            rows.append([f"{split} {name}", value, score["signature"] or score.get("details", "")])
            if name == metric.name:
                for baseline, of_baseline in result.get("baselines", {}).get(split, {}).items():
                    rows.append([f"{split} {name} of a {baseline}", metric.shown(of_baseline), ""])
    title = f"\nScores of the averaged model{', ' if result['search'] else ''}{result['search']}"
    console.print(table(title, ["score", "value", "signature"], rows, right=(1,)))
    if columns := samples_of(result):
        width = max(len(name) for name in columns)
        console.print(f"\nSamples of the {final} set", style="bold")
        for texts in zip(*columns.values(), strict=True):
            for name, text in zip(columns, texts, strict=True):
                first, *more = text.split("\n")
                console.print(f"  {name:<{width}}  {first}")
                for line in more:
                    console.print(f"  {'':<{width}}  {line}")
            console.print()
    seconds = max(training["seconds"], 1e-9)
    workers = "1 worker" if training["world_size"] == 1 else f"{training['world_size']} workers"
    counted = tokens_of(training)
    tokens = {column: counted[column] for column in token_columns(run.config.task)}  # labels are no tokens
    column = list(tokens)[-1]
    speeds = " + ".join(f"{count / seconds:,.0f} {name}" for name, count in tokens.items())
    evaluated = result["sentences"][final] / max(result["seconds"][final], 1e-9)
    units = "sentences" if run.config.languages else unit_of(_counts(run))
    console.print(
        f"Trained {training['step']:,} steps in {clock(seconds)}: {speeds} tokens/s without padding, "
        f"{tokens[column]:,} {column} tokens in all ({platform.machine()}, {processor_name()}, {workers}).\n"
        f"Evaluated on the {final} set at {evaluated:,.0f} {units}/s, start of the workers included.\n"
    )
    console.print(f"Run          {run.name}")
    console.print(f"Model        {run.folder / MODEL_FOLDER} (average of steps {in_words(result['steps_averaged'])})")
    if not result["training_ended"]:
        console.print(f"Training     has not ended; to go on: transloom train resume={called(run)}")
    console.print(f"Checkpoints  {run.folder / CHECKPOINTS_FOLDER}")
    if (outputs := Path(result["folder"]) / f"{final}.hypotheses").exists():
        console.print(f"Outputs      {outputs}")
    for picture in sorted(Path(result["folder"]).glob(f"{final}_*.png")):
        console.print(f"Picture      {picture}")
    console.print(f"Curves       {run.folder / FIGURES_FOLDER / CURVES_FILE}")


def print_next(*commands: str) -> None:
    """Prints sensible next commands; nothing in a submitted job, whose submitting command prints them."""
    if submission():
        return
    console.print("\nNext:", style="bold")
    for command in commands:
        console.print(f"  {command}")


def use_of(run: Run, model: str) -> str:
    """The command that uses `model`, a name or a folder, which is of the run's task."""
    match run.config.task:
        case TaskName.translation:
            return f"transloom translate {model} < your_text"
        case TaskName.classification:
            return f"transloom classify {model} < your_text"
        case TaskName.masked_language_model:
            own = "corpus.train.files=your.tsv"
            return f"transloom run experiment=transfer/classification {own} train.initial={model}"
        case TaskName.prompt_response:
            if architecture_of(run.config.model) != "decoder_only":  # which generate does not run
                return "transloom ui  # the responses are among the run's artifacts"
            corpus = cast(PromptsConfig, run.config.corpus)
            has_one_field = len(Template.of(corpus.template).fields) == 1
            return f"transloom generate {model} " + ('"your text"' if has_one_field else "prompts=records.jsonl")
        case TaskName.language_model:
            return f'transloom generate {model} "Once upon a time"'
