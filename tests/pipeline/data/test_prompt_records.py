"""Tests of prompts, their templates, and the records that they are made of."""

import json
from pathlib import Path

import numpy as np
import pytest

from transloom.pipeline.data.prompt_batches import LongExamples, Room
from transloom.pipeline.data.prompts import PromptsConfig, PromptsKind, ResponseMetric, Template, TooLong, read_examples
from transloom.pipeline.data.records import RecordSource
from transloom.pipeline.data.squad import paragraph_folds, read_squad
from transloom.pipeline.errors import UserError

# Templates


@pytest.mark.parametrize(
    ("template", "prompt", "tail"),
    [
        ("{text}\nTL;DR:\n", "a {b}\nTL;DR:\n", "\nTL;DR:\n"),
        (r"{text}\nTL;DR:\t", "a {b}\nTL;DR:\t", "\nTL;DR:\t"),
        ("{{{text}}} {{}}", "{a {b}} {}", "} {}"),
        ("{q.x}? {text}{text}", "why? a {b}a {b}", ""),
    ],
)
def test_a_template_has_the_fields_and_its_own_text(template: str, prompt: str, tail: str) -> None:
    made = Template.of(template)
    record = {"text": "a {b}", "q.x": "why"}
    assert (made.prompt(record), made.tail) == (prompt, tail)
    assert made.body(record) + tail == prompt


@pytest.mark.parametrize(
    "template", ["{text", "text}", "{}", "{0[a]}", "{text.__class__!r}", "{text:>9}", "{a b}", "no field", ""]
)
def test_a_template_runs_no_code_and_names_its_fields(template: str) -> None:
    with pytest.raises(ValueError, match=r"^template:"):
        PromptsConfig(template=template)


def test_an_attribute_in_a_template_is_only_the_name_of_a_nested_field() -> None:
    assert Template.of("{text.__class__}").fields == ("text.__class__",)
    with pytest.raises(KeyError):
        Template.of("{text.__class__}").prompt({"text": "x"})


# Long prompts


@pytest.mark.parametrize(
    ("too_long", "expected"), [(TooLong.cut_left, [4, 5, 6, 7]), (TooLong.cut_right, [0, 1, 6, 7])]
)
def test_a_long_prompt_is_cut_and_keeps_its_separator(too_long: TooLong, expected: list[int]) -> None:
    room = Room(4, 3, too_long, tail=2)
    assert room.cut(np.arange(8)).tolist() == expected
    assert room.cut(np.arange(4)).tolist() == [0, 1, 2, 3]


def test_what_is_cut_and_left_out_is_counted() -> None:
    lengths = np.array([[9, 2], [3, 2], [9, 7], [3, 7]])
    assert LongExamples.of(lengths, Room(4, 3, TooLong.cut_left, 0), is_train=True) == (1, 0, 2)
    assert LongExamples.of(lengths, Room(4, 3, TooLong.drop, 0), is_train=True) == (0, 1, 2)
    assert LongExamples.of(lengths, Room(4, 3, TooLong.drop, 0), is_train=False) == (2, 0, 2)
    assert LongExamples.of(lengths, Room(None, 9, TooLong.drop, 0), is_train=True) == (0, 0, 0)


# Records


def test_train_without_validation_gives_a_share_of_it_and_keeps_equal_prompts_together(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i % 200}", "response": f"r{i}"}) + "\n" for i in range(400)))
    config = PromptsConfig(train=RecordSource("train.jsonl"), path=str(tmp_path), held_out=0.2)
    prompts = {
        split: [example.fields["prompt"] for example in read_examples(config, split)]
        for split in ("train", "validation")
    }
    assert len(prompts["train"]) + len(prompts["validation"]) == 400
    assert 40 < len(prompts["validation"]) < 120
    assert not set(prompts["train"]) & set(prompts["validation"])


def test_a_missing_file_is_answered_with_the_setting() -> None:
    with pytest.raises(UserError, match=r"^corpus\.train\.files"):
        list(read_examples(PromptsConfig(), "train"))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_response_tokens": 1}, r"^max_response_tokens:"),
        ({"held_out": 1.0}, r"^held_out:"),
        ({"name": "a/b"}, r"^name:"),
        ({"response": ""}, r"^response:"),
        ({"validation_examples": -1}, r"^validation_examples:"),
        ({"kind": PromptsKind.squad, "fold": 5}, r"^fold:"),
        ({"kind": PromptsKind.squad, "folds": 2}, r"^folds:"),
        ({"kind": PromptsKind.squad, "test": RecordSource("a")}, r"^validation:"),
    ],
)
def test_values_out_of_their_range_are_refused(settings: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        PromptsConfig(**settings)


# SQuAD's form


def _squad(folder: Path, paragraphs: int = 10) -> Path:
    def paragraph(number: int) -> dict:
        questions = [
            {"question": f"q{number}.{i}", "id": f"{number}{i}", "answers": [{"text": "x", "answer_start": 0}] * 2}
            for i in range(2)
        ]
        return {"context": f"context {number}", "qas": questions}

    data = [{"title": "t", "paragraphs": [paragraph(i) for i in range(start, start + 5)]} for start in (0, 5)]
    file = folder / "squad.json"
    file.write_text(json.dumps({"version": "1.1", "data": data[: paragraphs // 5]}))
    return file


def test_every_paragraph_is_test_in_one_fold_and_train_in_the_rest(tmp_path: Path) -> None:
    file = _squad(tmp_path)
    of_split = {
        fold: {
            split: {record.texts["question"] for record in read_squad(file, split, fold, 5)}
            for split in ("train", "validation", "test")
        }
        for fold in range(5)
    }
    everything = {f"q{number}.{i}" for number in range(10) for i in range(2)}
    for fold, splits in of_split.items():
        assert splits["train"] | splits["validation"] | splits["test"] == everything
        assert [len(splits[split]) for split in ("train", "validation", "test")] == [12, 4, 4]
        assert splits["validation"] == of_split[(fold + 1) % 5]["test"]
    assert set().union(*(splits["test"] for splits in of_split.values())) == everything


def test_folds_depend_on_the_texts_alone() -> None:
    contexts = [f"c{i % 7}" for i in range(20)]
    folds = dict(zip(contexts, paragraph_folds(contexts, 3), strict=True))
    assert dict(zip(contexts[::-1], paragraph_folds(contexts[::-1], 3), strict=True)) == folds
    assert sorted(list(folds.values()).count(i) for i in range(3)) == [2, 2, 3]


def test_answers_are_each_named_once(tmp_path: Path) -> None:
    (record, *_) = read_squad(_squad(tmp_path), "train", 0, 5)
    assert record.lists == {"answers": ["x"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no list "data"'),
        ('{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}', 'article 1, paragraph 1: has no text "context"'),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}',
            "paragraph 1, question 1: has no answer",
        ),
    ],
)
def test_what_is_not_of_squads_form_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        for split in ("train", "validation", "test"):
            list(read_squad(file, split, 0, 5))


def test_a_template_of_squads_has_its_fields(tmp_path: Path) -> None:
    config = PromptsConfig(
        kind=PromptsKind.squad,
        metric=ResponseMetric.squad,
        train=RecordSource(str(_squad(tmp_path))),
        template="{context} {question} {title}",
    )
    with pytest.raises(UserError, match=r"^corpus\.template: \{title\}"):
        list(read_examples(config, "train"))
