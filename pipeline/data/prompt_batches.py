"""Prompts with their responses as the examples of an epoch, and as packed batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from transloom.model.build import ModelConfig
from transloom.model.config import LanguageModelConfig
from transloom.model.packing import Layout
from transloom.pipeline.data.packing import filler, pack
from transloom.pipeline.data.pairs import PairBatch, collate_pairs
from transloom.pipeline.data.prepare_prompts import COLUMNS
from transloom.pipeline.data.prompts import PromptsConfig, TooLong
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.tasks.task import Examples


@dataclass(frozen=True)
class Room:
    """The room of a model for prompts and responses.

    Attributes:
        prompt: the most tokens of a prompt; None: any number.
        response: the most tokens of a response, its end of text included.
        tail: the tokens at a prompt's end that are never cut away.
    """

    prompt: int | None
    response: int
    too_long: TooLong
    tail: int

    def cut(self, prompt: np.ndarray) -> np.ndarray:
        """The prompt, or what is left of it."""
        if self.prompt is None or len(prompt) <= self.prompt:
            return prompt
        if self.too_long is TooLong.cut_left:
            return prompt[len(prompt) - self.prompt :]
        body = self.prompt - self.tail
        return np.concatenate([prompt[:body], prompt[len(prompt) - self.tail :]])


class LongExamples(NamedTuple):
    """How many examples of a split the room changes.

    Attributes:
        cut: prompts. dropped: examples with a long prompt. long_responses: of train left out, of other splits cut.
    """

    cut: int
    dropped: int
    long_responses: int

    @staticmethod
    def of(lengths: np.ndarray, room: Room, is_train: bool) -> "LongExamples":
        """
        Args:
            lengths: (examples, 2) tokens of the whole prompts and responses.
        """
        prompts, responses = lengths[:, 0], lengths[:, 1]
        is_cut = np.zeros(len(lengths), bool) if room.prompt is None else prompts > room.prompt
        is_long = responses > room.response
        drops = is_train and room.too_long is TooLong.drop
        cut = int(np.count_nonzero(is_cut & ~is_long if is_train else is_cut))
        return LongExamples(0 if drops else cut, cut if drops else 0, int(np.count_nonzero(is_long)))


def room_of(shards: Path, model: ModelConfig, corpus: PromptsConfig) -> Room:
    """The room of a model for prompts and responses.

    Args:
        shards: the folder of the finished shards.
    Raises:
        UserError: the model's context has no room for a prompt.
    """
    tail: int = read_json(shards / MANIFEST)["counts"]["tail_tokens"]
    response, context = corpus.max_response_tokens, model.max_positions
    if context is None:
        return Room(None, response, corpus.too_long, tail)
    room = context - response if isinstance(model, LanguageModelConfig) else context
    if room <= tail or response > context:
        raise UserError(
            f"corpus.max_response_tokens: {response:,} tokens of a response and {tail:,} of the template's separator "
            f"leave no room in model.max_positions={context:,}; raise model.max_positions, or lower it"
        )
    return Room(room, response, corpus.too_long, tail)


def long_examples(shards: Path, model: ModelConfig, corpus: PromptsConfig) -> list[str]:
    """What the model's room does to the examples of each split, in words, a line each; empty where all fit.

    Raises:
        UserError: see `room_of`.
    """
    room = room_of(shards, model, corpus)
    side = "beginning" if room.too_long is TooLong.cut_left else "end"
    lines = []
    for split in corpus.splits:
        lengths = open_shards(shards, split, COLUMNS).lengths
        long = LongExamples.of(lengths, room, split == "train")
        what = [
            (long.cut, f"prompts are longer than {room.prompt} tokens, and cut at their {side}"),
            (long.dropped, f"examples are left out, since their prompts are longer than {room.prompt} tokens"),
            (
                long.long_responses,
                f"{'examples are left out, since their responses' if split == 'train' else 'responses'} are longer "
                f"than corpus.max_response_tokens={room.response}"
                + ("" if split == "train" else ", which the loss counts to there"),
            ),
        ]
        lines += [f"{split}: {count:,} of {len(lengths):,} {words}" for count, words in what if count]
    return lines


class PromptExamples:
    """The examples of an epoch, with the columns response, the tokens to predict, and text, the tokens to read.

    A decoder-only model reads the prompt and the response but for its last token; an encoder reads the prompt. An empty
    prompt is the end of text.

    Attributes:
        rows: (examples,) of the split's examples.
        lengths: (examples, 2) tokens of response and text.
    """

    columns = ("response", "text")

    def __init__(self, split: Examples, room: Room, end_of_text: int, one_text: bool, is_train: bool) -> None:
        """
        Args:
            split: with the columns prompt and response.
            one_text: whether the model reads prompt and response as one text, as a decoder-only model does.
            is_train: examples with a long response, or with too_long=drop a long prompt, are left out; of other splits
                such responses are cut.
        """
        self._split, self._room, self._end, self._one_text = split, room, end_of_text, one_text
        prompts, responses = split.lengths[:, 0], split.lengths[:, 1]
        keeps = np.ones(len(split), bool)
        if is_train:
            keeps = responses <= room.response
            if room.too_long is TooLong.drop and room.prompt is not None:
                keeps &= prompts <= room.prompt
        self.rows = np.flatnonzero(keeps)
        of_prompt = np.maximum(prompts[keeps], 1)
        of_prompt = of_prompt if room.prompt is None else np.minimum(of_prompt, room.prompt)
        of_response = np.minimum(responses[keeps], room.response)
        self.lengths = np.stack([of_response, of_prompt + of_response - 1 if one_text else of_prompt], axis=1)

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, column: str, row: int) -> np.ndarray:
        """The ids of "response", "text" or "prompt", the prompt as it is read."""
        place = int(self.rows[row])
        response = self._split.get("response", place)[: self._room.response]
        if column == "response":
            return response
        prompt = self._room.cut(self._split.get("prompt", place))
        if not len(prompt):
            prompt = np.array([self._end], dtype=response.dtype)
        return np.concatenate([prompt, response[:-1]]) if column == "text" and self._one_text else prompt


@dataclass(frozen=True)
class PromptBatch:
    """One micro-batch of packed prompts with their responses, then filler. Letters: N tokens, M of them predicted.

    Attributes:
        tokens: (N,) ids that the model reads.
        layout: of the examples; no example sees another.
        places: (M,) the tokens after which a token of a response is predicted.
        labels: (M,) ids to predict: each response with its end of text.
        real_tokens: of N, without filler.
    """

    tokens: Tensor
    layout: Layout
    places: Tensor
    labels: Tensor
    real_tokens: int

    def to(self, device: torch.device) -> "PromptBatch":
        """Returns the batch on another device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        # A copy runs beside the computation only from pinned memory.
        tokens, places, labels = (
            x.pin_memory().to(device, non_blocking=True) for x in (self.tokens, self.places, self.labels)
        )
        return PromptBatch(tokens, self.layout.to(device), places, labels, self.real_tokens)

    @property
    def padding_share(self) -> float:
        """The share of padding and filler in the padded grid, on which attention works."""
        return 1.0 - self.real_tokens / self.layout.token_of_cell.numel()

    @property
    def in_words(self) -> str:
        return f"{self.real_tokens:,} tokens, {len(self.labels):,} of them predicted"


def collate_prompts(examples: Examples, rows: Sequence[int] | np.ndarray) -> PromptBatch:
    """Packs the `PromptExamples` of these rows, each one text, for a decoder-only model."""
    texts = [examples.get("text", row) for row in rows]
    labels = [examples.get("response", row) for row in rows]
    (behind,) = filler([[len(x) for x in texts]])
    tokens, layout = pack(texts, behind)
    ends = np.cumsum([len(x) for x in texts])
    places = np.concatenate([np.arange(end - len(x), end) for end, x in zip(ends, labels, strict=True)])
    row = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return PromptBatch(tokens, layout, torch.from_numpy(places), row, int(ends[-1]))


class PromptPairs:
    """`PromptExamples` as pairs of source and target, for an encoder-decoder."""

    columns = ("source", "target")

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.lengths = examples.lengths[:, ::-1]

    def __len__(self) -> int:
        return len(self._examples)

    def get(self, column: str, row: int) -> np.ndarray:
        return self._examples.get("text" if column == "source" else "response", row)


def collate_prompt_pairs(start: int, examples: Examples, rows: Sequence[int] | np.ndarray) -> PairBatch:
    """Packs the `PromptExamples` of these rows as pairs, for an encoder-decoder.

    Args:
        start: the id that the decoder reads first.
    """
    return collate_pairs(PromptPairs(examples), rows, start)
