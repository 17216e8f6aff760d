"""Generate: texts that a language model continues, streamed, or as JSON lines."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.jobs.cli import configuration, parse_settings, refuse_invalid_utf8, sort_words, usage
from transloom.jobs.runs.language_model import (
    open_responder,
    output_file,
    response_settings,
    suggest,
    terminal_progress,
)
from transloom.jobs.runs.model import find_model
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.errors import UserError

if TYPE_CHECKING:
    from transloom.pipeline.data.prompts import Template
    from transloom.pipeline.data.text_tokenizer import TextTokenizer
    from transloom.pipeline.generate.language_model import LanguageModel
    from transloom.pipeline.generate.prompt_reader import PromptReader
    from transloom.pipeline.generate.prompts import Prompt
    from transloom.pipeline.generate.sample import SampleConfig

    Model = LanguageModel | PromptReader

# Why a sample ends, for people.
REASONS = {"end": "end of text", "stop": "stop", "length": "max_new_tokens", "context": "context is full"}


def main(argv: list[str]) -> int:
    from transloom.pipeline.generate.sample import SampleConfig

    keys = [field.name for field in dataclasses.fields(SampleConfig)]
    words, own, settings = sort_words(argv, ["prompts", "to", *keys], expand_home=False)
    config = configuration("generate", settings)
    if not words:
        raise UserError(usage("generate"))
    file, to = own.pop("prompts", None), own.pop("to", None)
    parse_settings(SampleConfig, own)  # refuses a wrong value before anything is read
    target = None if to is None else output_file("to", to)
    folder = find_model(os.path.expanduser(words[0]), output_dir(config))
    template, defaults = response_settings(folder)
    sampling = parse_settings(SampleConfig, defaults | own)
    prompts = _prompts(words[1:], file, template)
    try:
        model, tokenizer = open_responder(words[0], output_dir(config), folder)
        if target is None and file is None and len(prompts) == 1 == sampling.samples:
            _stream(model, tokenizer, prompts[0], sampling)
        else:
            _generate(model, tokenizer, prompts, sampling, target)
    except KeyboardInterrupt:
        end = "" if target is None else f"transloom: interrupted; {printable(str(target))} was not written"
        print(f"\n{end}".rstrip(" "), file=sys.stderr)
        return 130
    name = shlex.quote(words[0])
    if target is None:
        suggest(
            f"transloom generate {name} prompts=<file> samples=5 to=samples.jsonl", f"transloom score {name} <file>"
        )
    else:
        suggest(f"head -n 1 {shlex.quote(str(target))}", f"transloom score {name} <file>")
    return 0


def _prompts(texts: Sequence[str], file: str | None, template: "Template | None") -> "list[Prompt]":
    """The prompts; without any word or file an empty one, which begins a text."""
    from transloom.pipeline.generate.prompts import named_prompts, read_prompts, with_template

    if file is None:
        prompts = named_prompts(texts or [""])
        for prompt in prompts:
            refuse_invalid_utf8(prompt.where, prompt.text)
        return [with_template(prompt, template) for prompt in prompts]
    if texts:
        raise UserError(f"prompts: the file has the prompts, and so has the command: {texts[0][:60]!r}. Leave one out")
    return read_prompts(Path(os.path.expanduser(file)), template)


def _stream(model: "Model", tokenizer: "TextTokenizer", prompt: "Prompt", config: "SampleConfig") -> None:
    """One continuation, as it grows; on a terminal behind its prompt. A line feed follows."""
    from transloom.pipeline.generate.prompts import stream

    if sys.stdout.isatty():
        _write(prompt.text)
    record = stream(model, tokenizer, prompt, config, _write)
    _write("\n")
    if not record["samples"][0]["text"]:
        reason = REASONS[record["samples"][0]["reason"]]
        print(f"transloom: nothing was added to the prompt ({reason})", file=sys.stderr)


def _generate(
    model: "Model",
    tokenizer: "TextTokenizer",
    prompts: "Sequence[Prompt]",
    config: "SampleConfig",
    target: Path | None,
) -> None:
    """All samples of all prompts: into the file; without one as JSON lines, or in blocks on a terminal."""
    from transloom.pipeline.data.json_lines import json_line, write_json_lines
    from transloom.pipeline.generate.prompts import generate

    with terminal_progress() as progress:
        records: Iterable[Mapping[str, Any]] = generate(model, tokenizer, prompts, config, progress=progress)
        if target is not None:
            write_json_lines(target, records)
            return
        is_terminal = sys.stdout.isatty()
        for prompt, record in zip(prompts, records, strict=True):
            _write(_block(prompt, record) if is_terminal else json_line(record))


def _block(prompt: "Prompt", record: Mapping[str, Any]) -> str:
    """The samples of a prompt for people to read."""
    samples = record["samples"]
    return "".join(
        f"\n── {prompt.where}, sample {number} of {len(samples)} ({REASONS[sample['reason']]}) ──\n"
        f"{prompt.text}{sample['text']}\n"
        for number, sample in enumerate(samples, start=1)
    )


def _write(text: str) -> None:
    sys.stdout.buffer.write((printable(text) if sys.stdout.isatty() else text).encode())
    sys.stdout.buffer.flush()
