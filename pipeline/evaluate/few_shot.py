"""Responses of a language model that has not learned a task, with solved examples in front of each prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.generate.language_model import LanguageModel
from transloom.pipeline.generate.sample import SampleConfig, sample
from transloom.pipeline.progress import Progress, no_progress

SEPARATOR = "\n\n"  # between the examples, and before the prompt


class Solved(NamedTuple):
    """A solved example of train, as token ids without the end of text."""

    prompt: np.ndarray
    response: np.ndarray


@dataclass(frozen=True)
class FewShot:
    """
    Attributes:
        responses: to each prompt. examples: the number of solved examples that stood in front of each; fewer than asked
            for where the context had no room for them.
    """

    responses: list[str]
    examples: list[int]


def few_shot_responses(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[np.ndarray],
    solved: Callable[[int], Solved],
    num_solved: int,
    shots: int,
    max_tokens: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> FewShot:
    """The likeliest response to each prompt, token by token, behind `shots` solved examples (Brown et al. 2020, section
    2). Which examples these are is a function of (seed, number of the prompt); the examples of fewer shots are those
    nearest to the prompt of more. The model is in evaluation mode.

    A response ends with the end of text, at the first line break (at the first blank line, if the response of a drawn
    example has line breaks), or after `max_tokens`.

    Args:
        prompts: ids of each, which leave room for the response.
        solved: the solved example of a number below `num_solved`.
    Raises:
        ValueError: `shots` is negative, or more than `num_solved`.
    """
    if not 0 <= shots <= num_solved:
        raise ValueError(f"shots: must be from 0 to {num_solved:,}, the number of solved examples, not {shots}")
    separator = tokenizer.encode([SEPARATOR])[0]
    room = None if model.config.max_positions is None else model.config.max_positions - max_tokens
    texts, counts, is_one_line = [], [], True
    for number, prompt in enumerate(prompts):
        parts, size, count = [prompt], len(prompt), 0
        for i in np.random.default_rng([seed, number]).permutation(num_solved)[:shots]:
            one = solved(int(i))
            is_one_line = is_one_line and "\n" not in tokenizer.decode(one.response.tolist()).strip()
            size += len(one.prompt) + len(one.response) + len(separator)
            if room is not None and size > room:
                break
            parts, count = [one.prompt, one.response, separator, *parts], count + 1
        texts.append(np.concatenate(parts))
        counts.append(count)
    config = SampleConfig(
        temperature=0.0, max_new_tokens=max_tokens, batch_size=64, stop=("\n" if is_one_line else SEPARATOR,)
    )
    samples = sample(
        model,
        texts,
        config,
        tokenizer.end_of_text,
        tokenizer.decode,
        vocab_size=tokenizer.vocab_size,
        progress=progress,
    )
    return FewShot([generated.text for (generated,) in samples], counts)
