"""Prompts from files, and their samples as JSON lines."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from language_toys import ByteTokenizer, ToyModel

import transloom.pipeline.generate.prompts
from transloom.pipeline.data.json_lines import write_json_lines
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.prompts import Prompt, generate, named_prompts, read_prompts, stream
from transloom.pipeline.generate.sample import SampleConfig, sample


def write(folder: Path, name: str, data: bytes) -> Path:
    file = folder / name
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


@pytest.mark.parametrize("name", ["prompts.txt", "prompts", "prompts.txt.gz"])
def test_a_text_has_a_prompt_a_line_and_blank_ones_are_empty(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name, "\ufeffTo be\r\n\n{é\u2028 ".encode())
    assert [(prompt.text, prompt.id) for prompt in read_prompts(file)] == [
        ("To be", None),
        ("", None),
        ("{é\u2028 ", None),
    ]
    assert [prompt.where for prompt in read_prompts(file)] == [f"{file}, line {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.json", "prompts.ndjson.gz"])
def test_json_lines_have_prompts_of_any_text_and_ids(tmp_path: Path, name: str) -> None:
    file = write(
        tmp_path, name, b'{"prompt": "a\\nb", "id": 7}\n\n{"prompt": "", "id": "x", "more": [1]}\n{"prompt": "c"}'
    )
    assert read_prompts(file) == [
        Prompt("a\nb", f"{file}, line 1", "7"),
        Prompt("", f"{file}, line 3", "x"),
        Prompt("c", f"{file}, line 4"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', 2),
        ("p.jsonl", b'{"prompt": "a"}\n\n["a"]\n', 3),
        ("p.jsonl", b'{"text": "a"}\n', 1),
        ("p.jsonl", b'{"prompt": null}\n', 1),
        ("p.jsonl", b'{"prompt": "a", "id": [1]}\n', 1),
        ("p.jsonl", b'{"prompt": "a", "id": true}\n', 1),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', 1),
        ("p.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"\n", 1),
        ("p.txt", b"good\nbad \xff\n", 2),
        ("p.txt", b"a" * (1 << 20) + b"\n" + b"b" * (1 << 21), 2),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, data: bytes, line: int) -> None:
    file = write(tmp_path, name, data)
    with pytest.raises(UserError) as error:
        read_prompts(file)
    assert str(error.value).startswith(f"{file}, line {line}: ")


@pytest.mark.parametrize(
    ("name", "data"), [("p.txt", b""), ("p.jsonl", b"\n\n"), ("p.txt", b"PK\x03\x04" + b"\0" * 90)]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    file = write(tmp_path, name, data)
    with pytest.raises(UserError, match=str(file)):
        read_prompts(file)
    with pytest.raises(UserError, match=r"missing\.txt"):
        read_prompts(tmp_path / "missing.txt")


def test_results_are_json_lines_with_all_that_made_them(tmp_path: Path) -> None:
    model, tokenizer = ToyModel(), ByteTokenizer()
    config = SampleConfig(max_new_tokens=5, samples=2, seed=9, top_k=40, stop=("zz",))
    prompts = [Prompt("é", "p.jsonl, line 1", "first"), *named_prompts([""])]
    file = tmp_path / "new" / "samples.jsonl"
    assert write_json_lines(file, generate(model, tokenizer, prompts, config)) == 2
    records = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    assert [record["prompt"] for record in records] == ["é", ""]
    assert records[0]["id"] == "first" and "id" not in records[1]
    expected = sample(model, tokenizer.encode(["é", ""]), config, tokenizer.end_of_text, tokenizer.decode)
    for record, samples in zip(records, expected, strict=True):
        assert record["seed"] == 9
        assert record["settings"]["top_k"] == 40 and record["settings"]["stop"] == ["zz"]
        assert record["samples"] == [
            {"text": one.text, "log_probability": one.log_probability, "tokens": one.tokens, "reason": one.reason}
            for one in samples
        ]


def test_results_do_not_depend_on_how_many_prompts_are_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SampleConfig(max_new_tokens=4)
    prompts = named_prompts(["a", "bb", "ccc", "a", "bb"])
    whole = list(generate(ToyModel(), ByteTokenizer(), prompts, config))
    monkeypatch.setattr(transloom.pipeline.generate.prompts, "PROMPTS_AT_A_TIME", 2)
    assert list(generate(ToyModel(), ByteTokenizer(), prompts, config)) == whole


def test_a_prompt_that_is_too_long_is_refused_by_its_line_before_anything_is_generated(tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", b"short\n" + b"x" * 65)
    model = ToyModel(max_positions=64)
    with pytest.raises(UserError) as error:
        generate(model, ByteTokenizer(), read_prompts(file), SampleConfig())
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert "65" in str(error.value) and "64" in str(error.value)
    assert model.sizes == []


def test_a_stream_hands_out_whole_characters_as_they_come_and_is_the_same_sample() -> None:
    model, tokenizer = ToyModel(), ByteTokenizer()
    with torch.no_grad():
        model.output[128:256] *= 3  # bytes that are part of longer characters
    prompt, config = Prompt("To", "prompt 1"), SampleConfig(max_new_tokens=40, seed=3, stop=("no",))
    written: list[str] = []
    record = stream(model, tokenizer, prompt, config, written.append)
    assert [record] == list(generate(model, tokenizer, [prompt], config))
    assert "".join(written) == record["samples"][0]["text"]
    assert len(written) > 5 and all(written)
    with pytest.raises(ValueError, match="samples"):
        stream(model, tokenizer, prompt, SampleConfig(samples=2), written.append)


def test_progress_counts_the_samples_of_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transloom.pipeline.generate.prompts, "PROMPTS_AT_A_TIME", 2)
    counts: list[tuple[int, int]] = []
    config = SampleConfig(max_new_tokens=2, samples=2, batch_size=2)
    prompts = named_prompts(["a", "b", "c"])
    list(generate(ToyModel(), ByteTokenizer(), prompts, config, progress=lambda _, *count: counts.append(count)))
    assert counts == [(0, 6), (2, 6), (4, 6), (4, 6), (6, 6)]
