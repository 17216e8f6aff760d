"""Prompts from a file, and their samples as JSON lines."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transloom.pipeline.data.json_lines import id_field, is_json_lines, read_json_lines, read_text_lines, text_field
from transloom.pipeline.data.prompts import Template
from transloom.pipeline.data.records import text_of
from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.language_model import LanguageModel
from transloom.pipeline.generate.prompt_reader import PromptReader
from transloom.pipeline.generate.sample import OnTokens, SampleConfig, refuse_long_prompts, sample
from transloom.pipeline.generate.text_stream import TextStream
from transloom.pipeline.progress import Progress, no_progress

PROMPTS_AT_A_TIME = 1000  # sorted by length together, their samples in memory together


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        where: the prompt's place, for messages: "file, line 3".
        id: the prompt's name in the file, if any.
        tail: the end of the text that is tokenised apart: a template's separator.
    """

    text: str
    where: str
    id: str | None = None
    tail: str = ""


def read_prompts(path: Path, template: Template | None = None) -> list[Prompt]:
    """The prompts of a file in UTF-8, plain or .gz.

    A file named .jsonl, .json or .ndjson has an object a line, with "prompt" and an optional "id"; blank lines are
    skipped. Any other file has a prompt a line, and a blank line is an empty prompt.

    Args:
        template: of the model's prompts. An object has the template's fields, or else a whole prompt as "prompt"; a
            line is the field of a template that has one.
    Raises:
        UserError: a line is no prompt (names file and line), or there are no prompts.
    """
    if is_json_lines(path):
        prompts = [_of_record(where, record, template) for where, record in read_json_lines(path)]
    else:
        prompts = [with_template(Prompt(text, where), template) for where, text in read_text_lines(path)]
    if not prompts:
        raise UserError(f"{path} has no prompts: write one a line")
    return prompts


def _of_record(where: str, record: dict[str, Any], template: Template | None) -> Prompt:
    name = id_field(where, record)
    if template is None or ("prompt" in record and "prompt" not in template.fields):
        return Prompt(text_field(where, record, "prompt"), where, name)
    fields = {field: text_of(record, field, where, "prompts") for field in template.fields}
    return Prompt(template.prompt(fields), where, name, template.tail)


def with_template(prompt: Prompt, template: Template | None) -> Prompt:
    """The prompt as the field of a template with one field; without a template the prompt itself.

    Raises:
        UserError: the template has several fields.
    """
    if template is None:
        return prompt
    if len(template.fields) != 1:
        raise UserError(
            f"{prompt.where}: the model's prompts have the fields {', '.join(template.fields)}; give them as JSON "
            "lines: prompts=records.jsonl"
        )
    text = template.prompt({template.fields[0]: prompt.text})
    return dataclasses.replace(prompt, text=text, tail=template.tail)


def _encode(tokenizer: TextTokenizer, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """The ids of each prompt; the tail is tokenised apart, as it was in training."""
    bodies = tokenizer.encode([prompt.text.removesuffix(prompt.tail) for prompt in prompts])
    tails = tokenizer.encode([prompt.tail for prompt in prompts])
    return [np.concatenate(parts) for parts in zip(bodies, tails, strict=True)]


def named_prompts(texts: Iterable[str]) -> list[Prompt]:
    """Prompts that do not come from a file, such as the words of a command."""
    return [Prompt(text, f"prompt {number}") for number, text in enumerate(texts, start=1)]


def generate(
    model: LanguageModel | PromptReader,
    tokenizer: TextTokenizer,
    prompts: Sequence[Prompt],
    config: SampleConfig,
    on_tokens: OnTokens | None = None,
    progress: Progress = no_progress,
) -> Iterator[dict[str, Any]]:
    """Yields a JSON object for each prompt, in order, for `write_json_lines`.

    An object has "prompt", the prompt's "id" if any, "samples" (each with "text", "log_probability" in nats, "tokens":
    ids, and "reason"), "seed" and "settings". All prompts are checked before the first is continued.

    Args:
        on_tokens: see `sample`.
    Raises:
        UserError: a prompt is longer than the context, naming the prompt; see `sample`.
    """
    encoded = _encode(tokenizer, prompts)
    refuse_long_prompts(encoded, model.config.max_positions, [prompt.where for prompt in prompts])
    return _generate(model, tokenizer, prompts, encoded, config, on_tokens, progress)


def _generate(model, tokenizer, prompts, encoded, config, on_tokens, progress) -> Iterator[dict[str, Any]]:
    settings = dataclasses.asdict(config)
    settings["stop"] = list(config.stop)
    seed = settings.pop("seed")
    for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
        part = slice(start, start + PROMPTS_AT_A_TIME)

        def part_progress(what: str, done: int, total: int, note: str = "", start: int = start) -> None:
            progress(what, start * config.samples + done, len(prompts) * config.samples)

        results = sample(
            model,
            encoded[part],
            config,
            tokenizer.end_of_text,
            tokenizer.decode,
            on_tokens,
            first_prompt=start,
            vocab_size=tokenizer.vocab_size,
            progress=part_progress,
        )
        for prompt, samples in zip(prompts[part], results, strict=True):
            name = {} if prompt.id is None else {"id": prompt.id}
            yield {
                **name,
                "prompt": prompt.text,
                "samples": [
                    {
                        "text": generated.text,
                        "log_probability": generated.log_probability,
                        "tokens": generated.tokens,
                        "reason": generated.reason,
                    }
                    for generated in samples
                ],
                "seed": seed,
                "settings": settings,
            }


def stream(
    model: LanguageModel | PromptReader,
    tokenizer: TextTokenizer,
    prompt: Prompt,
    config: SampleConfig,
    write: Callable[[str], None],
) -> dict[str, Any]:
    """Continues a prompt once, and passes the text to `write` as soon as it is certain.

    Returns:
        The JSON object of `generate`; the sample's text is the whole written text.
    Raises:
        UserError: see `generate`.
        ValueError: `config.samples` is above 1.
    """
    if config.samples != 1:
        raise ValueError(f"samples: one sample can be streamed, not {config.samples}")
    start = _encode(tokenizer, [prompt])[0].tolist() or [tokenizer.end_of_text]
    text = TextStream(tokenizer.decode, config.stop, start)

    def on_token(_prompt: int, _sample: int, token: int) -> None:
        if new := text.push(token):
            write(new)

    record = next(generate(model, tokenizer, [prompt], config, on_token))
    if rest := text.finish():
        write(rest)
    return record
