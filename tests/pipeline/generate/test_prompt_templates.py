"""Prompts by a model's template: words, lines and records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transloom.pipeline.data.prompts import Template
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.prompts import Prompt, _encode, read_prompts, with_template

ONE, TWO = Template.of("{text}\n> "), Template.of("{context}\n{question}\n")


def test_a_word_is_the_field_of_a_template_with_one_field() -> None:
    prompt = with_template(Prompt("a text", "prompt 1"), ONE)
    assert (prompt.text, prompt.tail) == ("a text\n> ", "\n> ")
    with pytest.raises(UserError, match=r"^prompt 1: .*context, question.*prompts="):
        with_template(Prompt("a text", "prompt 1"), TWO)
    assert with_template(Prompt("a text", "prompt 1"), None).text == "a text"


def test_records_have_the_template_s_fields_or_the_whole_prompt(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        json.dumps({"context": "c", "question": "q", "id": 7}) + "\n" + json.dumps({"prompt": "as it is"}) + "\n"
    )
    assert [(one.text, one.tail, one.id) for one in read_prompts(file, TWO)] == [
        ("c\nq\n", "\n", "7"),
        ("as it is", "", None),
    ]
    file.write_text(json.dumps({"context": "c"}) + "\n")
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: .*question"):
        read_prompts(file, TWO)
    (tmp_path / "p.txt").write_text("a line\n")
    assert read_prompts(tmp_path / "p.txt", ONE)[0].text == "a line\n> "


def test_a_field_named_prompt_gets_the_template_too(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a"}) + "\n")
    assert [(one.text, one.tail) for one in read_prompts(file, Template.of("{prompt}\n"))] == [("a\n", "\n")]


def test_records_are_read_as_in_training(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"a": {"b": "x"}, "n": 3}) + "\n")
    assert read_prompts(file, Template.of("{a.b}: {n}\n"))[0].text == "x: 3\n"


def test_the_tail_is_tokenised_apart() -> None:
    class Characters:
        def encode(self, texts: list[str]) -> list[np.ndarray]:
            return [np.array([len(text)]) if text else np.empty(0, int) for text in texts]

    tokenizer: Any = Characters()
    encoded = _encode(tokenizer, [Prompt("abc> ", "here", None, "> "), Prompt("abc> ", "here")])
    assert [ids.tolist() for ids in encoded] == [[3, 2], [5]]
