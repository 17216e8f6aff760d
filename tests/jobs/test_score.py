"""`transloom score`: accuracy at choices and bits per byte of documents, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from language_folder import write_language_model

from transloom.jobs.__main__ import main
from transloom.model.packing import Layout
from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
from transloom.pipeline.evaluate.accuracy import wilson

ITEMS = [
    {"context": "To be or", "choices": [" not", " is"], "answer": 1, "id": "a"},
    {"context": "that is", "choices": [" the", " question", " café"], "answer": 0},
    {"context": "", "choices": ["To", "be"], "answer": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    write_language_model(folder, padding=0)
    return folder


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in ITEMS))
    Path("text.txt").write_text("To be,\nor not.\n")


def log_probability(folder: Path, before: str, after: str) -> float:
    """Of a text after another one, in one pass over both."""
    tokenizer = load_text_tokenizer(folder)
    prompt, labels = (ids.tolist() for ids in tokenizer.encode([before, after]))
    tokens = torch.tensor((prompt or [tokenizer.end_of_text]) + labels)
    model = write_language_model(folder.parent / "again", padding=0)
    with torch.inference_mode():
        scores = model.logits(model(tokens, Layout.of(torch.tensor([len(tokens)])))).double().log_softmax(-1)
    return sum(float(scores[-len(labels) - 1 + i, label]) for i, label in enumerate(labels))


def results(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_choices_have_the_models_log_probabilities_and_an_accuracy(folder: Path, capsys) -> None:
    assert main(["score", str(folder), "items.jsonl", "results=new/r.jsonl"]) == 0
    out = capsys.readouterr().out
    records = results("new/r.jsonl")
    assert [record["id"] for record in records] == ["a", "2", "3"]
    right = 0
    for item, record in zip(ITEMS, records, strict=True):
        expected = [log_probability(folder, item["context"], choice) for choice in item["choices"]]
        assert record["log_probabilities"] == pytest.approx(expected, abs=1e-4)
        right += expected.index(max(expected)) == item["answer"]
    low, high = wilson(right, 3)
    sums = next(line for line in out.splitlines() if line.startswith("sum "))
    assert f"{right / 3:.1%}  {low:.1%} to {high:.1%}  {right} of 3" in " ".join(sums.split(" ")).replace("   ", "  ")
    assert f"{(1 / 2 + 1 / 3 + 1 / 2) / 3:.1%}" in out


def test_shots_come_from_the_other_items_or_from_a_file(folder: Path) -> None:
    words = ["score", str(folder), "items.jsonl", "shots=1", "template={context}:{choice}", 'separator="\\n"']
    Path("one.jsonl").write_text(json.dumps({"context": "not", "choices": ["x", "to"], "answer": 1}))
    assert main([*words, "results=other.jsonl", "examples=one.jsonl"]) == 0
    for item, record in zip(ITEMS, results("other.jsonl"), strict=True):
        prompt = f"not:to\n{item['context']}:"
        expected = [log_probability(folder, prompt, choice) for choice in item["choices"]]
        assert record["log_probabilities"] == pytest.approx(expected, abs=1e-4)
    assert main([*words, "results=own.jsonl"]) == 0
    first = results("own.jsonl")[0]["log_probabilities"]
    shots = [f"{item['context']}:{item['choices'][item['answer']]}\nTo be or:" for item in ITEMS[1:]]
    possible = [log_probability(folder, shot, " not") for shot in shots]
    assert any(first[0] == pytest.approx(value, abs=1e-4) for value in possible)


def test_bits_per_byte_of_a_text(folder: Path, capsys) -> None:
    assert main(["score", str(folder), "text.txt", "results=r.jsonl"]) == 0
    (record,) = results("r.jsonl")
    nats = log_probability(folder, "", Path("text.txt").read_text())
    assert record["document"] == "text.txt" and record["bytes"] == 15
    assert record["log_probability"] == pytest.approx(nats, abs=1e-4)
    assert record["bits_per_byte"] == pytest.approx(-nats / math.log(2) / 15, abs=1e-5)
    assert f"{record['bits_per_byte']:.4f}" in capsys.readouterr().out


def test_documents_are_lines_or_records_where_that_is_asked_for(folder: Path) -> None:
    Path("texts.jsonl").write_text('{"text": "To be,"}\n{"text": ""}\n{"text": "or not."}\n')
    assert main(["score", str(folder), "texts.jsonl", "results=records.jsonl"]) == 0
    assert main(["score", str(folder), "text.txt", "unit=line", "results=lines.jsonl"]) == 0
    records, lines = results("records.jsonl"), results("lines.jsonl")
    expected = [log_probability(folder, "", text) for text in ("To be,", "or not.")]
    assert [line["log_probability"] for line in lines] == pytest.approx(expected, abs=1e-4)
    assert [record["log_probability"] for record in records] == pytest.approx([expected[0], 0, expected[1]], abs=1e-4)
    assert records[1]["bits_per_byte"] is None


def test_a_smaller_stride_gives_more_context(folder: Path) -> None:
    Path("long.txt").write_text("To be, or not to be, that is the question. " * 8)
    found = []
    for stride in ("1", "64"):
        assert main(["score", str(folder), "long.txt", f"stride={stride}", "results=r.jsonl"]) == 0
        found += results("r.jsonl")
    assert found[0]["tokens"] == found[1]["tokens"] > 64
    assert found[0]["log_probability"] != pytest.approx(found[1]["log_probability"], abs=1e-2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["items.jsonl"], None),
        (["items.jsonl", "more"], "usage: transloom score"),
        (["items.jsonl", "shots=many"], "shots: "),
        (["items.jsonl", "shots=3"], "shots=3: "),
        (["items.jsonl", "template={context}"], "template: "),
        (["items.jsonl", "template={context}\\n{choice}"], "template: "),
        (["items.jsonl", "examples=items.jsonl"], "examples: "),
        (["items.jsonl", "stride=4"], "stride: means nothing here"),
        (["items.jsonl", "results=."], "results=.: "),
        (["text.txt", "shots=1"], "shots: means nothing here"),
        (["text.txt", "unit=word"], "unit=word: there is file, line, paragraph"),
        (["text.txt", "stride=65"], "stride: "),
        (["text.txt", "strid=65"], "Did you mean stride?"),
        (["empty.txt"], "empty.txt is empty"),
        (["empty.jsonl"], "empty.jsonl is empty"),
        (["bad.txt"], "bad.txt line 2"),
        (["bad.jsonl"], "bad.jsonl, line 2"),
        (["broken.jsonl"], "broken.jsonl, line 2"),
        (["none.txt"], "no such file: none.txt"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], message: str | None, folder: Path, capsys) -> None:
    for name in ("empty.txt", "empty.jsonl"):
        Path(name).touch()
    Path("bad.txt").write_bytes(b"To\n\xff\n")
    Path("bad.jsonl").write_bytes(json.dumps(ITEMS[0]).encode() + b"\n\xff\n")
    Path("broken.jsonl").write_text(f"{json.dumps(ITEMS[0])}\n" + '{"context": "a", "choices": ["b"], "answer": 0}\n')
    assert main(["score", str(folder), *words]) == (0 if message is None else 2)
    out, err = capsys.readouterr()
    if message is not None:
        assert err.startswith("transloom: ") and message in err and err.count("\n") == 1
        assert out == ""
