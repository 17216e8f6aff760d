"""Sampling from a language model through its cache, batched over prompts and samples.

Letters in shapes: R unfinished rows (a sample of a prompt each), V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.language_model import LanguageModel, device_of, pack
from transloom.pipeline.generate.prompt_reader import PromptReader
from transloom.pipeline.generate.text_stream import Decode, TextStream
from transloom.pipeline.progress import Progress, no_progress

Reason = Literal["end", "stop", "length", "context"]
OnTokens = Callable[[int, int, int], None]

CANDIDATES = 512  # the likeliest tokens, searched for a nucleus before more are sorted
ROUNDING = 1e-9  # half of equally likely tokens reach top_p=0.5 in whatever order their weights are added


@dataclass(frozen=True)
class SampleConfig:
    """How to continue a prompt. Temperature comes first, then top_k, then top_p of what top_k left.

    Attributes:
        temperature: the divisor of logits; 0 always takes the likeliest token.
        top_k: the number of likeliest tokens to draw from; 0: all.
        top_p: tokens are drawn from the smallest set of likeliest tokens with this probability together; 1: all
            (Holtzman et al. 2020, section 3.1).
        max_new_tokens: of a sample.
        seed: a sample is a function of (seed, number of the prompt, number of the sample, prompt).
        samples: of each prompt.
        batch_size: samples made side by side.
        stop: a sample ends before the first of these texts.
    Raises:
        ValueError: naming the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    samples: int = 1
    batch_size: int = 32
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: must be at least 0, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k: must be at least 1, or 0 for all tokens, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be above 0 and at most 1, not {self.top_p}")
        for name in ("max_new_tokens", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: must be from 0 to 2^64 - 1, not {self.seed}")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop: must be a list of texts, none of them empty, not {self.stop!r}")


@dataclass(frozen=True)
class Generated:
    """A sample.

    Attributes:
        tokens: the new ids, without the end of text, but with those of a stop string.
        log_probability: of these tokens (and of the end of text, if any) given the prompt, in nats, by the model
            itself: at temperature 1 and without top_k and top_p.
        reason: of the sample's end: the model's end of text, a stop string, max_new_tokens, or a full context.
        text: the text that the tokens add to the prompt's text, up to the stop string; empty without `decode`.
    """

    tokens: list[int]
    log_probability: float
    reason: Reason
    text: str = ""


@dataclass
class _Row:
    """An unfinished sample. `limit`: its largest number of new tokens. `full`: the reason for an end at the limit."""

    prompt: int
    sample: int
    limit: int
    full: Reason
    stream: TextStream | None
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0

    def take(self, token: int, log_probability: float, end_of_text: int) -> Reason | None:
        """Adds a token; returns the reason if the sample ends with this token."""
        self.log_probability += log_probability
        if token == end_of_text:
            return "end"
        self.tokens.append(token)
        if self.stream is not None:
            self.stream.push(token)
            if self.stream.stopped:
                return "stop"
        return self.full if len(self.tokens) == self.limit else None

    def finish(self, reason: Reason) -> Generated:
        if self.stream is None:
            return Generated(self.tokens, self.log_probability, reason)
        self.stream.finish()
        reason = "stop" if self.stream.stopped else reason
        return Generated(self.tokens, self.log_probability, reason, self.stream.text)


@torch.inference_mode()
def sample(
    model: LanguageModel | PromptReader,
    prompts: Sequence[np.ndarray],
    config: SampleConfig,
    end_of_text: int,
    decode: Decode | None = None,
    on_tokens: OnTokens | None = None,
    first_prompt: int = 0,
    names: Sequence[str] | None = None,
    vocab_size: int | None = None,
    progress: Progress = no_progress,
) -> list[list[Generated]]:
    """Continues each prompt `config.samples` times. The model is in evaluation mode.

    A sample depends on (seed, number of the prompt, number of the sample, prompt) alone, not on its batch or on other
    prompts: each sample has its own noise, and finished samples leave the batch. Only the rounding of the model's
    products still depends on the batch. Draws are made in fp64, so rounding changes a token about as seldom as rounding
    is small.

    Args:
        prompts: ids of each. An empty prompt begins with the end of text.
        decode: ids to text; needed for stop strings and for `Generated.text`.
        on_tokens: called with (number of the prompt, number of the sample, token) as soon as a token is drawn, except
            for the end of text. Samples of a batch take turns.
        first_prompt: the number of the first prompt, if the prompts are a part of many.
        names: of the prompts, in messages.
        vocab_size: ids from vocab_size on are never drawn: a model may have more ids than its tokenizer has tokens.
            None: all ids are drawn.
    Returns:
        The samples of each prompt.
    Raises:
        UserError: a prompt is longer than the model's context, or the model's output is not finite.
    """
    if config.stop and decode is None:
        raise ValueError("stop: stop strings need decode")
    room = model.config.max_positions
    takes_room = not isinstance(model, PromptReader)
    refuse_long_prompts(prompts, room, names)
    starts = [ids if len(ids) else np.array([end_of_text]) for ids in prompts]
    results: list[list[Generated]] = [[Generated([], 0.0, "context")] * config.samples for _ in prompts]
    rows = []
    # Prompts of similar lengths share a batch, the longest first, so that a lack of memory shows at once.
    for prompt in sorted(range(len(prompts)), key=lambda i: -len(starts[i])):
        limit, full = config.max_new_tokens, "length"
        left = None if room is None else room - takes_room * len(starts[prompt])
        if left is not None and left < limit:
            limit, full = left, "context"
        for number in range(config.samples if limit else 0):
            stream = TextStream(decode, config.stop, starts[prompt].tolist()) if decode else None
            rows.append(_Row(prompt, number, limit, full, stream))
    for start in range(0, len(rows), config.batch_size):
        progress("sampling, samples", start, len(rows))
        batch = rows[start : start + config.batch_size]
        for row, generated in _sample_batch(
            model, starts, batch, config, end_of_text, on_tokens, first_prompt, vocab_size
        ):
            results[row.prompt][row.sample] = generated
    progress("sampling, samples", len(rows), len(rows))
    return results


def refuse_long_prompts(prompts: Sequence[np.ndarray], room: int | None, names: Sequence[str] | None = None) -> None:
    """
    Args:
        room: tokens of the model's context; None: any number.
        names: of the prompts, in the message; by default their numbers, from 1.
    Raises:
        UserError: a prompt is longer than the context.
    """
    for number, ids in enumerate(prompts):
        if room is not None and len(ids) > room:
            name = names[number] if names is not None else f"prompt {number + 1}"
            raise UserError(
                f"{name}: the prompt has {len(ids):,} tokens, and the model's context is {room:,}. Shorten the prompt; "
                "its new tokens need room, too"
            )


def _sample_batch(
    model: LanguageModel | PromptReader,
    starts: Sequence[np.ndarray],
    rows: list[_Row],
    config: SampleConfig,
    end_of_text: int,
    on_tokens: OnTokens | None,
    first_prompt: int,
    vocab_size: int | None,
) -> list[tuple[_Row, Generated]]:
    """
    Args:
        starts: the ids that each prompt begins with, at least one.
    """
    device = device_of(model)
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    decoding = model.start_decoding(*pack([starts[prompt] for prompt in prompts], device))
    # A prompt is read once for all of its samples.
    place = {prompt: i for i, prompt in enumerate(prompts)}
    copies = torch.tensor([place[row.prompt] for row in rows], device=device)
    logits = decoding.logits[copies]
    decoding.reorder(copies, None)
    noise = [draw_noise(config.seed, first_prompt + row.prompt, row.sample, row.limit) for row in rows]
    finished = []
    while True:
        uniforms = torch.tensor([drawn[len(row.tokens)] for row, drawn in zip(rows, noise, strict=True)])
        tokens, log_probabilities = choose(logits, uniforms.to(device), config, vocab_size)
        stays = []
        drawn_tokens = zip(rows, tokens.tolist(), log_probabilities.tolist(), strict=True)
        for i, (row, token, log_probability) in enumerate(drawn_tokens):
            if math.isnan(log_probability):
                raise UserError(
                    "the model's logits are not finite: the precision is too small for its weights, or these are "
                    "damaged. Use precision=fp32 or bf16, or another checkpoint"
                )
            reason = row.take(token, log_probability, end_of_text)
            if on_tokens is not None and reason != "end":
                on_tokens(first_prompt + row.prompt, row.sample, token)
            if reason is None:
                stays.append(i)
            else:
                finished.append((row, row.finish(reason)))
        if not stays:
            return finished
        if len(stays) < len(rows):
            kept = torch.tensor(stays, device=device)
            decoding.reorder(kept, None)
            tokens = tokens[kept]
            rows, noise = [rows[i] for i in stays], [noise[i] for i in stays]
        logits = decoding.step(tokens)


def draw_noise(seed: int, prompt: int, sample: int, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) of one sample; a larger `count` only appends numbers.

    Philox (Salmon et al. 2011) is a function of a key and a counter, so samples have independent numbers.
    """
    key = np.array([seed, prompt], dtype=np.uint64)
    counter = np.array([0, 0, sample, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)


def choose(
    logits: Tensor, uniforms: Tensor, config: SampleConfig, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draws a token for each row, by the inverse of the distribution function over ids.

    The ids stay in their order: in an order by probability, rounding would swap neighbours.

    Args:
        logits: (R, V). uniforms: (R,) in [0, 1), fp64.
        vocab_size: only ids below it are drawn; None: all.
    Returns:
        tokens (R,), and their log-probabilities (R,) in fp64 by the model itself, over all V ids; NaN where logits are
        not finite.
    """
    logits = logits.double()
    known = logits[:, :vocab_size]
    if config.temperature == 0:
        tokens = known.argmax(-1)
    else:
        weights = ((known - known.amax(-1, keepdim=True)) / config.temperature).exp()
        cumulative = truncate(weights, config.top_k, config.top_p).cumsum(-1)
        # A product with a number below 1 stays below the last sum, and a token of weight 0 does not increase the sum.
        tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
        tokens = tokens.clamp(max=known.shape[-1] - 1)  # for NaN
    return tokens, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def truncate(weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """The weights (R, V) of a distribution, at least 0, with 0 for tokens that top_k and then top_p leave out.

    Among equal weights, lower ids stay.
    """
    size = weights.shape[-1]
    if 0 < top_k < size:
        counts = torch.full_like(weights[:, :1], top_k)
        weights = _keep_largest(weights, weights.topk(top_k).values[:, -1:], counts)
    if top_p < 1:
        goal = (top_p - ROUNDING) * weights.sum(-1, keepdim=True)
        width = min(CANDIDATES, size)
        while True:
            largest = weights.topk(width).values
            reached = largest.cumsum(-1) >= goal
            if width == size or bool(reached[:, -1].all()):
                break
            width = min(8 * width, size)
        counts = ((~reached).sum(-1, keepdim=True) + 1).clamp(max=width)
        weights = _keep_largest(weights, largest.gather(1, counts - 1), counts)
    return weights


def _keep_largest(weights: Tensor, smallest: Tensor, counts: Tensor) -> Tensor:
    """
    Args:
        smallest: (R, 1) the smallest weight to keep. counts: (R, 1) number of weights to keep.
    """
    above, equal = weights > smallest, weights == smallest
    room = counts - above.sum(-1, keepdim=True)
    return weights * (above | (equal & (equal.cumsum(-1) <= room)))
