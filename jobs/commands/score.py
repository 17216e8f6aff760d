"""Score: how likely a language model finds texts: accuracy at multiple choice, or bits per byte of documents."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from transloom.jobs.cli import configuration, parse_settings, sort_words, usage
from transloom.jobs.runs.language_model import open_language_model, output_file, suggest, terminal_progress
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.console import console, table
from transloom.pipeline.errors import UserError


def main(argv: list[str]) -> int:
    from transloom.pipeline.data.lines import existing_file
    from transloom.pipeline.evaluate.choices import ChoiceConfig
    from transloom.pipeline.evaluate.documents import DocumentScoreConfig, holds_items

    of_choices = [field.name for field in dataclasses.fields(ChoiceConfig)] + ["examples"]
    of_documents = [field.name for field in dataclasses.fields(DocumentScoreConfig)]
    words, own, settings = sort_words(argv, ["results", *of_choices, *of_documents], expand_home=False)
    config = configuration("score", settings)
    if len(words) != 2:
        raise UserError(usage("score"))
    results = output_file("results", own.pop("results")) if "results" in own else None
    path = existing_file(os.path.expanduser(words[1]))
    has_items = holds_items(path)
    for key in own:
        if key not in (of_choices if has_items else of_documents):
            content = "items with choices" if has_items else "documents"
            raise UserError(f"{key}: means nothing here; {path} holds {content}")
    root = output_dir(config)
    try:
        if has_items:
            _score_choices(words[0], root, path, own, results)
        else:
            _score_documents(words[0], root, path, own, results)
    except KeyboardInterrupt:
        print("\ntransloom: interrupted; there is no score", file=sys.stderr)
        return 130
    name, file = shlex.quote(words[0]), shlex.quote(words[1])
    more = " shots=5" if has_items and "shots" not in own else ""
    if results is None:
        suggest(
            f"transloom score {name} {file}{more} results=scores.jsonl  # each {'item' if has_items else 'document'}"
        )
    else:
        suggest(f"transloom score <another model> {file} results=<another file>")
    return 0


def _score_choices(name: str, root: Path, path: Path, own: Mapping[str, str], results: Path | None) -> None:
    from transloom.pipeline.data.json_lines import write_json_lines
    from transloom.pipeline.evaluate.choices import ChoiceConfig, accuracies, score_choices
    from transloom.pipeline.evaluate.items import read_items

    settings = dict(own)
    examples_file = settings.pop("examples", None)
    config = parse_settings(ChoiceConfig, settings)
    if examples_file is not None and config.shots == 0:
        raise UserError("examples: none of them is used without shots=5 or another number of them")
    items = read_items(path)
    examples = items if examples_file is None else read_items(Path(os.path.expanduser(examples_file)))
    loaded = open_language_model(name, root)
    with terminal_progress() as progress:
        scores = score_choices(loaded.model, loaded.tokenizer, items, config, examples, progress)
    if results is not None:
        write_json_lines(results, (score.record() for score in scores))
    by_measure = accuracies(scores)
    rows = [
        [
            measure.replace("_", " "),
            f"{result.value:.1%}",
            f"{result.low:.1%} to {result.high:.1%}",
            f"{result.correct:,} of {result.items:,}",
        ]
        for measure, result in by_measure.items()
    ]
    title = f"Accuracy of {name} on {path}, {config.shots} shots"
    console.print(table(title, ["log-probability", "accuracy", "95 % interval", "right"], rows, right=(1, 2, 3)))
    console.print(f"Guessing comes to {next(iter(by_measure.values())).chance:.1%}.")
    if results is not None:
        console.print(f"Results  {results.absolute()}")


def _score_documents(name: str, root: Path, path: Path, own: Mapping[str, str], results: Path | None) -> None:
    from transloom.pipeline.data.json_lines import write_json_lines
    from transloom.pipeline.evaluate.documents import (
        DocumentScoreConfig,
        document_record,
        read_documents,
        score_documents,
    )
    from transloom.pipeline.evaluate.likelihood import total_score

    config = parse_settings(DocumentScoreConfig, own)
    documents = read_documents(path, config.unit)
    loaded = open_language_model(name, root)
    with terminal_progress() as progress:
        scores = score_documents(loaded.model, loaded.tokenizer, documents, config, progress)
    if results is not None:
        write_json_lines(results, map(document_record, documents, scores))
    total = total_score(scores)
    row = [
        f"{len(documents):,}",
        f"{total.tokens:,}",
        f"{total.bytes:,}",
        f"{total.log_probability:,.1f}",
        f"{total.bits_per_byte:.4f}",
    ]
    columns = ["documents", "tokens", "bytes", "log-probability (nats)", "bits per byte"]
    console.print(table(f"{name} on {path}", columns, [row], right=(0, 1, 2, 3, 4)))
    stride = config.stride or max(1, loaded.model.config.max_positions // 2)
    counted = f"context:{loaded.model.config.max_positions}|stride:{stride}|ends:no"
    console.print(f"Counted as {counted}: ends of text are not predicted, so a run's own evaluation differs.")
    if results is not None:
        console.print(f"Results  {results.absolute()}")
