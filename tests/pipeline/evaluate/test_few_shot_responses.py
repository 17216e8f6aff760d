"""Solved examples in front of a prompt: which, how many fit, and where a response ends."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transloom.pipeline.evaluate import few_shot
from transloom.pipeline.evaluate.few_shot import Solved, few_shot_responses
from transloom.pipeline.generate.sample import Generated

LINES = [(f"q{i}>", f"a{i}") for i in range(20)]


class Letters:
    """A tokenizer whose ids are code points."""

    end_of_text, vocab_size = 0, 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(list(map(ord, text)), dtype=np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `sample` was called with: (prompts as texts, its configuration)."""
    calls: list[Any] = []

    def sample(model: Any, prompts: Any, config: Any, *_: Any, **__: Any) -> list[list[Generated]]:
        calls.append(([Letters().decode(ids) for ids in prompts], config))
        return [[Generated([], 0.0, "end", f"response {i}")] for i in range(len(prompts))]

    monkeypatch.setattr(few_shot, "sample", sample)
    return calls


def respond(shots: int, context: int | None = None, lines: Sequence[tuple[str, str]] = LINES, seed: int = 0) -> Any:
    model: Any = SimpleNamespace(config=SimpleNamespace(max_positions=context))
    tokenizer: Any = Letters()
    prompts = tokenizer.encode(["first>", "second>"])

    def solved(i: int) -> Solved:
        return Solved(*tokenizer.encode(lines[i]))

    return few_shot_responses(model, tokenizer, prompts, solved, len(lines), shots, 8, seed)


def test_examples_stand_in_front_of_each_prompt_and_those_of_fewer_shots_are_nearest(seen: list[Any]) -> None:
    made = {shots: respond(shots) for shots in (0, 1, 3)}
    (none, _), (one, _), (three, _) = seen
    assert none == ["first>", "second>"]
    for of_one, of_three, prompt in zip(one, three, none, strict=True):
        assert of_three.endswith("\n\n" + of_one) and of_one.endswith("\n\n" + prompt)
        examples = of_three.split("\n\n")[:-1]
        assert len(set(examples)) == 3 and set(examples) <= {prompt + response for prompt, response in LINES}
    assert one[0].split("\n\n")[0] != one[1].split("\n\n")[0]  # each prompt has its own
    assert made[3].examples == [3, 3] and made[3].responses == ["response 0", "response 1"]


def test_which_examples_is_a_function_of_the_seed(seen: list[Any]) -> None:
    respond(3), respond(3), respond(3, seed=1)
    assert seen[0][0] == seen[1][0] != seen[2][0]


def test_examples_that_the_context_has_no_room_for_are_left_out_and_counted(seen: list[Any]) -> None:
    # 8 tokens are left for the response; an example takes 5 or 7 and the separator 2.
    made = respond(4, context=8 + 7 + 2 * 9)
    assert made.examples == [2, 2]
    assert all(len(text) + 8 <= 8 + 7 + 2 * 9 for text in seen[0][0])


def test_a_response_ends_at_a_line_break_or_at_a_blank_line_if_responses_have_lines(seen: list[Any]) -> None:
    respond(2)
    respond(2, lines=[("q>", "a\nb"), ("r>", "c\nd")])
    assert [config.stop for _, config in seen] == [("\n",), ("\n\n",)]
    assert all(config.temperature == 0 and config.max_new_tokens == 8 for _, config in seen)


@pytest.mark.parametrize("shots", [-1, 21])
def test_a_number_of_examples_that_there_are_not_is_refused(shots: int) -> None:
    with pytest.raises(ValueError, match="shots"):
        respond(shots)
