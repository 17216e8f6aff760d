"""Responses to prompts by greedy search, of a decoder-only model or an encoder-decoder."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from transloom.model.config import LanguageModelConfig
from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.generate.prompt_reader import PromptReader
from transloom.pipeline.generate.sample import SampleConfig, sample

BATCH = 64  # responses made side by side


def respond(
    model: Any,
    tokenizer: TextTokenizer,
    prompts: Sequence[np.ndarray],
    max_tokens: int,
    progress: Callable[[int], object] = lambda done: None,
) -> list[str]:
    """The likeliest response to each prompt, token by token, up to the end of text. The model is in evaluation mode.

    Args:
        prompts: ids of each, at least one, which leave room for the response.
        max_tokens: of a response.
        progress: called with the number of finished responses.
    """
    responses = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        ids = _respond(model, tokenizer, [np.asarray(prompts[i], np.int64) for i in chosen], max_tokens)
        for i, tokens in zip(chosen, ids, strict=True):
            responses[i] = tokenizer.decode(tokens)
        progress(start + len(chosen))
    return responses


@torch.inference_mode()
def _respond(model: Any, tokenizer: TextTokenizer, prompts: list[np.ndarray], max_tokens: int) -> list[list[int]]:
    end = tokenizer.end_of_text
    reader = model if isinstance(model.config, LanguageModelConfig) else PromptReader(model, end)
    config = SampleConfig(temperature=0.0, max_new_tokens=max_tokens, batch_size=len(prompts))
    samples = sample(reader, prompts, config, end, vocab_size=tokenizer.vocab_size)
    return [generated.tokens for (generated,) in samples]
