"""Multiple choice equals one pass for each token, whatever the batch, the order and the other items."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from language_toys import ByteTokenizer, ToyModel

from transloom.pipeline.data.json_lines import write_json_lines
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.choices import (
    ChoiceConfig,
    ItemScore,
    accuracies,
    compare_results,
    score_choices,
)
from transloom.pipeline.evaluate.items import Item, read_items

TOKENIZER = ByteTokenizer()


def item(context: str, choices: tuple[str, ...] = ("no", "yes", "é?"), answer: int = 0, name: str = "1") -> Item:
    return Item(context, choices, answer, name, f"items.jsonl, line {name}")


ITEMS = [
    item("Is it so? ", name="1"),
    item("", (" left", " right"), 1, name="2"),
    item("One, two,", (" three", " four", " five", " a hundred"), 0, name="3"),
    item("  ", ("a", "b"), 1, name="4"),
    item("Is it so? ", ("no", "perhaps"), name="5"),
]
EXAMPLES = [item(f"Example {n} of", (" many", f" {n}"), n % 2, str(n)) for n in range(6)] + [item("One, two,")]


def plain(model: ToyModel, before: str, after: str) -> float:
    """The log-probability of a text after another one, with a pass for each byte."""
    ids, total = list(before.encode()) or [256], 0.0
    for label in after.encode():
        total += float(model.next_logits(ids).double().log_softmax(-1)[label])
        ids.append(label)
    return total


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_scores_equal_one_by_one(batch_tokens: int) -> None:
    model = ToyModel(max_positions=100)
    scores = score_choices(model, TOKENIZER, ITEMS, ChoiceConfig(batch_tokens=batch_tokens))
    for score in scores:
        context = score.item.context.rstrip(" ")
        spaces = score.item.context[len(context) :]
        expected = [plain(model, context, spaces + choice) for choice in score.item.choices]
        assert list(score.log_probabilities) == pytest.approx(expected, abs=1e-4)
        assert list(score.bytes) == [len((spaces + choice).encode()) for choice in score.item.choices]
        assert score.bytes == score.tokens and score.cut == 0


def test_a_word_is_tokenised_with_the_spaces_before_it() -> None:
    texts: list[str] = []

    class Words(ByteTokenizer):
        def encode(self, batch: list[str]) -> list[np.ndarray]:
            texts.extend(batch)
            return super().encode(batch)

    config = ChoiceConfig(template="Q: {context}\nA: {choice}")
    scores = score_choices(ToyModel(max_positions=100), Words(), [item("{choice} {context}?")], config)
    assert texts == ["Q: {choice} {context}?\nA:", " no", " yes", " é?"]
    assert scores[0].bytes == (3, 4, 4)


def test_solved_examples_stand_before_the_item_and_are_never_the_item() -> None:
    model = ToyModel(max_positions=300)
    config = ChoiceConfig(shots=6, seed=3, template="{context}:{choice}", separator="\n")
    scores = score_choices(model, TOKENIZER, ITEMS[2:3], config, EXAMPLES)
    # All but the example with the item's own context are used, in an order that the seed gives.
    shots = {f"Example {n} of:" + (" many", f" {n}")[n % 2] for n in range(6)}

    class Recording(ByteTokenizer):
        def encode(self, batch: list[str]) -> list[np.ndarray]:
            prompts.append(batch[0])
            return super().encode(batch)

    prompts: list[str] = []
    score_choices(model, Recording(), ITEMS[2:3], config, EXAMPLES)
    *used, last = prompts[0].split("\n")
    assert set(used) == shots and len(used) == 6 and last == "One, two,:"
    assert list(scores[0].log_probabilities) == pytest.approx(
        [plain(model, prompts[0], choice) for choice in ITEMS[2].choices], abs=1e-3
    )


def test_examples_depend_on_seed_and_item_alone() -> None:
    model = ToyModel(max_positions=200)

    def scores(items: list[Item], seed: int = 0) -> dict[str, tuple[float, ...]]:
        config = ChoiceConfig(shots=2, seed=seed)
        return {one.item.id: one.log_probabilities for one in score_choices(model, TOKENIZER, items, config, EXAMPLES)}

    whole = scores(ITEMS)
    assert scores(ITEMS[::-1]) == whole == scores(ITEMS)
    assert scores(ITEMS[1:2]) == {"2": whole["2"]}
    assert sum(scores(ITEMS, seed=1)[name] != whole[name] for name in whole) >= 3
    with pytest.raises(UserError, match=r"^shots=7: for items\.jsonl, line 3 there are 6 "):
        score_choices(model, TOKENIZER, ITEMS, ChoiceConfig(shots=7), EXAMPLES)


def test_a_prompt_that_is_too_long_is_cut_equally_for_all_choices_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel(max_positions=12)
    long = item("0123456789", ("abcdefgh", "x", "yz"))
    with caplog.at_level(logging.WARNING):
        scores = score_choices(model, TOKENIZER, [long, ITEMS[1]], ChoiceConfig())
    # 12 tokens are read: 5 of the prompt, and 7 of the 8 of the longest choice.
    assert [score.cut for score in scores] == [5, 0]
    assert list(scores[0].log_probabilities) == pytest.approx(
        [plain(model, "56789", choice) for choice in long.choices], abs=1e-4
    )
    assert "1 of 2 prompts" in caplog.text
    exact = item("01234", ("abcdefgh", "x"))
    assert score_choices(model, TOKENIZER, [exact], ChoiceConfig())[0].cut == 0
    # A choice of as many tokens as the context needs one token before it, and its last is not read.
    (full,) = score_choices(model, TOKENIZER, [item("xyz", ("a" * 12, "b"))], ChoiceConfig())
    assert full.log_probabilities[1] == pytest.approx(plain(model, "z", "b"), abs=1e-4)
    with pytest.raises(UserError, match=r"^items\.jsonl, line 1: .*\b13 tokens.*\b12\b"):
        score_choices(model, TOKENIZER, [item("xyz", ("a" * 13, "b"))], ChoiceConfig())


def test_words_that_run_together_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score_choices(ToyModel(), TOKENIZER, [item("It is"), *ITEMS], ChoiceConfig())
    assert "1 of 6 prompts run into" in caplog.text


def test_measures_and_accuracies() -> None:
    score = ItemScore(item("", ("a", "bb", "ccc"), 1), (-2.0, -3.0, -4.2), (1, 2, 4), (1, 2, 2), 0)
    assert score.values("sum") == [-2.0, -3.0, -4.2] and score.choice("sum") == 0
    assert score.values("per_byte") == [-2.0, -1.5, -1.05] and score.choice("per_byte") == 2
    assert score.values("per_token") == [-2.0, -1.5, -2.1] and score.choice("per_token") == 1
    tied = ItemScore(item("", ("a", "b"), 0), (-1.0, -1.0), (1, 1), (1, 1), 0)
    found = accuracies([score, tied])
    assert {measure: result.correct for measure, result in found.items()} == {"sum": 1, "per_byte": 1, "per_token": 2}
    assert found["sum"].chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found["sum"].value == 0.5


def test_a_model_that_prefers_a_letter_gets_the_items_where_it_is_right() -> None:
    model = ToyModel()
    with torch.no_grad():
        model.output.zero_()
        model.output[ord("b")] += 10 * model.embedding[ord(":")] + 10 * model.positions[1]
    items = [item("x:", ("a", "b"), n % 4 // 3, str(n)) for n in range(40)]
    result = accuracies(score_choices(model, TOKENIZER, items, ChoiceConfig()))["sum"]
    assert (result.correct, result.items, result.chance) == (10, 40, 0.5)


GOOD = {"context": "c", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"context": None},
        {"context": 3},
        {"choices": "ab"},
        {"choices": ["a"]},
        {"choices": ["a", 1]},
        {"choices": ["a", ""]},
        {"choices": ["a", "a"]},
        {"choices": None},
        {"answer": 2},
        {"answer": -1},
        {"answer": True},
        {"answer": "0"},
        {"answer": None},
        {"answer": 0.0},
        {"id": {}},
        {"id": "1"},
    ],
)
def test_a_bad_field_is_refused_by_file_line_and_name(tmp_path: Path, change: dict) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in (GOOD, {**GOOD, **change})))
    with pytest.raises(UserError) as error:
        read_items(file)
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert f'"{next(iter(change))}"' in str(error.value)


def test_items_are_read_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(["", json.dumps({**GOOD, "subject": "x"}), json.dumps({**GOOD, "id": "q7"})]))
    assert [(one.id, one.where) for one in read_items(file)] == [("1", f"{file}, line 2"), ("q7", f"{file}, line 3")]
    file.write_text("\n")
    with pytest.raises(UserError, match="items"):
        read_items(file)


def test_two_files_of_results_are_compared_item_by_item(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    items = [item("", ("a", "b"), 0, f"q{n}") for n in range(8)]
    right = {"one": {0, 1, 2, 3}, "other": {2, 3, 4, 5, 6, 7}}

    def records(name: str, some: list[Item]):
        for score in some:
            values = (-1.0, -2.0) if int(score.id[1:]) in right[name] else (-2.0, -1.0)
            yield ItemScore(score, values, (1, 1), (1, 1), 0).record()

    write_json_lines(one, records("one", items))
    write_json_lines(other, records("other", items[::-1]))
    result = compare_results(one, other, "sum")
    assert (result.only_first, result.only_second) == (2, 4)
    assert result.difference == pytest.approx(0.25)

    write_json_lines(other, records("other", items[1:]))
    with pytest.raises(UserError, match="q0"):
        compare_results(one, other, "sum")
    write_json_lines(other, records("other", [*items[1:], item("else", ("a", "b"), 0, "q0")]))
    with pytest.raises(UserError, match="q0"):
        compare_results(one, other, "sum")
    other.write_text('{"id": "q0", "item": "x", "correct": {"sum": 1}}\n')
    with pytest.raises(UserError) as error:
        compare_results(one, other, "sum")
    assert str(error.value).startswith(f'{other}, line 1: "correct"')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shots", -1),
        ("seed", -1),
        ("batch_tokens", 0),
        ("template", "{choice}"),
        ("template", "{context}"),
        ("template", "{choice}{context}"),
        ("template", "{context}{context}{choice}"),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        ChoiceConfig(**{field: value})
