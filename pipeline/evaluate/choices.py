"""Multiple choice by log-probabilities: which continuation of a context does a language model find likeliest?"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transloom.pipeline.data.json_lines import read_json_lines, shorten, text_field
from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.accuracy import Accuracy, Paired, accuracy, compare_correct
from transloom.pipeline.evaluate.items import Item
from transloom.pipeline.evaluate.likelihood import Passage, log_probabilities
from transloom.pipeline.generate.language_model import LanguageModel
from transloom.pipeline.progress import Progress, no_progress

log = logging.getLogger(__name__)

CONTEXT, CHOICE = "{context}", "{choice}"
MEASURES = ("sum", "per_byte", "per_token")  # what the choices of an item are compared by


@dataclass(frozen=True)
class ChoiceConfig:
    """How an item becomes a prompt.

    Attributes:
        shots: solved examples before each item.
        seed: which examples these are is a function of (seed, item).
        template: has {context} once, and ends in {choice}.
        separator: between examples, and before the item.
        batch_tokens: tokens that the model reads at a time.
    Raises:
        ValueError: naming the field.
    """

    shots: int = 0
    seed: int = 0
    template: str = CONTEXT + CHOICE
    separator: str = "\n\n"
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ValueError(f"shots: must be at least 0, not {self.shots}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: must be from 0 to 2^64 - 1, not {self.seed}")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens: must be at least 1, not {self.batch_tokens}")
        is_once = self.template.count(CONTEXT) == 1 == self.template.count(CHOICE)
        if not (is_once and self.template.endswith(CHOICE)):
            raise ValueError(f"template: must have {CONTEXT} once, and {CHOICE} once at its end, not {self.template!r}")

    def prompt(self, context: str) -> str:
        """The template up to the choice."""
        before, after = self.template.removesuffix(CHOICE).split(CONTEXT)
        return before + context + after


@dataclass(frozen=True)
class ItemScore:
    """An item's choices as the model sees them.

    Attributes:
        log_probabilities: of each continuation given its prompt, in nats.
        bytes, tokens: of each continuation.
        cut: tokens that were taken from the beginning of the prompt, which was too long.
    """

    item: Item
    log_probabilities: tuple[float, ...]
    bytes: tuple[int, ...]
    tokens: tuple[int, ...]
    cut: int

    def values(self, measure: str) -> list[float]:
        """What the choices are compared by: the log-probability, or that for each byte or token."""
        sizes = {"sum": (1,) * len(self.tokens), "per_byte": self.bytes, "per_token": self.tokens}[measure]
        return [total / size for total, size in zip(self.log_probabilities, sizes, strict=True)]

    def choice(self, measure: str) -> int:
        """The likeliest choice; of equal ones the first."""
        values = self.values(measure)
        return values.index(max(values))

    def record(self) -> dict[str, Any]:
        """A JSON object for `write_json_lines`; `read_results` reads what `compare_results` needs."""
        return {
            "id": self.item.id,
            "item": self.item.digest,
            "answer": self.item.answer,
            "log_probabilities": list(self.log_probabilities),
            "bytes": list(self.bytes),
            "tokens": list(self.tokens),
            "cut_tokens": self.cut,
            "correct": {measure: self.choice(measure) == self.item.answer for measure in MEASURES},
        }


def score_choices(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    items: Sequence[Item],
    config: ChoiceConfig,
    examples: Sequence[Item] = (),
    progress: Progress = no_progress,
) -> list[ItemScore]:
    """The log-probability of each choice of each item. The model is in evaluation mode.

    Prompt and continuation are tokenised apart, so that each token belongs to one of them and all choices follow the
    same tokens. Spaces at the prompt's end go to the continuation first: a tokenizer whose words begin with their space
    has no token for a space alone before a word. A continuation's bytes and tokens include those spaces. An empty
    prompt is the end of text.

    A prompt that leaves no room for the item's longest choice is cut at its beginning, equally for all choices, and a
    warning counts such items.

    Args:
        examples: from another file, to choose `config.shots` from for each item; never the item itself.
    Raises:
        UserError: there are too few examples, or a choice alone is longer than the context.
    """
    prompts = _prompts(items, examples, config)
    _warn_of_words_run_together(prompts, items)
    texts, continuations = [], []
    for prompt, item in zip(prompts, items, strict=True):
        text = prompt.rstrip(" ")
        texts.append(text)
        continuations.append([prompt[len(text) :] + choice for choice in item.choices])
    starts = [ids if len(ids) else np.array([tokenizer.end_of_text]) for ids in tokenizer.encode(texts)]
    encoded = iter(tokenizer.encode([text for some in continuations for text in some]))
    passages, cuts, ends = [], [], []
    for start, item in zip(starts, items, strict=True):
        choices = [next(encoded) for _ in item.choices]
        cut = _too_long(len(start), choices, item, model.config.max_positions)
        passages += [Passage(np.concatenate((start[cut:], ids[:-1])), ids) for ids in choices]
        cuts.append(cut)
        ends.append([len(ids) for ids in choices])
    if any(cuts):
        log.warning(
            "%d of %d prompts leave no room for their choices and are cut at the beginning, by %d tokens at most",
            sum(cut > 0 for cut in cuts),
            len(cuts),
            max(cuts),
        )
    scores = iter(log_probabilities(model, passages, config.batch_tokens, progress))
    return [
        ItemScore(
            item,
            tuple(float(next(scores).sum()) for _ in item.choices),
            tuple(len(text.encode()) for text in some),
            tuple(sizes),
            cut,
        )
        for item, some, sizes, cut in zip(items, continuations, ends, cuts, strict=True)
    ]


def _too_long(prompt: int, choices: Sequence[np.ndarray], item: Item, room: int | None) -> int:
    """By how many tokens a prompt of so many is too long. The last token of a choice is never read."""
    for choice, ids in zip(item.choices, choices, strict=True):
        if not len(ids):
            raise UserError(f"{item.where}: the choice {shorten(choice)} has no tokens. Give it a text")
    if room is None:
        return 0
    longest = max(len(ids) for ids in choices)
    if longest > room:
        raise UserError(
            f"{item.where}: a choice has {longest:,} tokens, and the model's context is {room:,}. Shorten the choice"
        )
    return max(0, prompt + longest - 1 - room)


def _prompts(items: Sequence[Item], examples: Sequence[Item], config: ChoiceConfig) -> list[str]:
    """Of each item what comes before its choice."""
    contexts = Counter(example.context for example in examples)
    prompts = []
    for item in items:
        usable = len(examples) - contexts[item.context]
        if usable < config.shots:
            raise UserError(
                f"shots={config.shots}: for {item.where} there are {usable} examples (those with its own context are "
                "not used). Give more examples, or lower shots"
            )
        shots = [examples[i] for i in _choose_examples(item, examples, config)]
        solved = [config.prompt(shot.context) + shot.choices[shot.answer] for shot in shots]
        prompts.append(config.separator.join([*solved, config.prompt(item.context)]))
    return prompts


def _choose_examples(item: Item, examples: Sequence[Item], config: ChoiceConfig) -> list[int]:
    """Places of different examples that are not the item, at least `shots` of which there are."""
    key = np.array([config.seed, int(item.digest[:16], 16)], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    chosen: list[int] = []
    while len(chosen) < config.shots:
        place = int(generator.random() * len(examples))
        if place not in chosen and examples[place].context != item.context:
            chosen.append(place)
    return chosen


def _warn_of_words_run_together(prompts: Sequence[str], items: Sequence[Item]) -> None:
    joined = sum(
        prompt[-1:].isalnum() and all(choice[0].isalnum() for choice in item.choices)
        for prompt, item in zip(prompts, items, strict=True)
    )
    if joined:
        log.warning(
            "%d of %d prompts run into their choices without a space; template='{context} {choice}' puts one there",
            joined,
            len(items),
        )


def accuracies(scores: Sequence[ItemScore]) -> dict[str, Accuracy]:
    """By each of MEASURES, with the accuracy of guessing."""
    chance = sum(1 / len(score.item.choices) for score in scores) / len(scores)
    return {
        measure: accuracy([score.choice(measure) == score.item.answer for score in scores], chance)
        for measure in MEASURES
    }


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """What `ItemScore.record` made, by the item's id.

    Raises:
        UserError: naming file and line; or there are no results.
    """
    results: dict[str, dict[str, Any]] = {}
    for where, record in read_json_lines(path):
        name, correct = text_field(where, record, "id"), record.get("correct")
        text_field(where, record, "item")
        if not isinstance(correct, dict) or not all(isinstance(correct.get(measure), bool) for measure in MEASURES):
            raise UserError(f'{where}: "correct" must have {", ".join(MEASURES)}, each true or false')
        if name in results:
            raise UserError(f'{where}: the "id" {shorten(name)} is there twice')
        results[name] = record
    if not results:
        raise UserError(f"{path} has no results")
    return results


def compare_results(first: Path, second: Path, measure: str) -> Paired:
    """Two files of results of the same items, in whatever order.

    Args:
        measure: one of MEASURES.
    Raises:
        UserError: the files are of different items.
    """
    one, other = read_results(first), read_results(second)
    if missing := next(_differing_ids(one, other), None):
        raise UserError(
            f"{first} and {second} are not of the same items: {shorten(missing)} is in one of them alone, or differs. "
            "Score both systems on one file"
        )
    pairs = [(one[name]["correct"][measure], other[name]["correct"][measure]) for name in one]
    return compare_correct([left for left, _ in pairs], [right for _, right in pairs])


def _differing_ids(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    names: Iterable[str] = dict.fromkeys((*one, *other))
    for name in names:
        if name not in one or name not in other or one[name]["item"] != other[name]["item"]:
            yield name
