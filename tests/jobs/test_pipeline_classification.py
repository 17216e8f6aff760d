"""A masked language model and classifiers that begin with it through the real command line: runs, pages in MLflow,
texts labelled, runs compared."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from command import Outcome, transloom, transloom_here
from mlflow_database import give_database
from runs import folder_of, mlflow_runs

from transloom.pipeline.files import read_json

pytestmark = pytest.mark.slow

GOOD, BAD = ["good", "fine", "lovely"], ["bad", "poor", "dull"]
WORDS = ["the", "film", "story", "of", "its", "actors"]
SMALL = (
    *("precision=fp32", "cluster.num_workers=2", "train.log_every=5"),
    *("batch.tokens=512", "batch.micro_tokens=256", "schedule.warmup_steps=2", "schedule.peak_learning_rate=1e-2"),
)
SHAPE = ("model.layers=1", "model.d_model=32", "model.d_ff=64", "model.num_heads=2", "model.max_positions=32")
MASKED = (
    "experiment=transfer/pretrain_for_sst2", "name=masked", "corpus.train.text=[text.txt]",
    "corpus.decontaminate=[test.tsv]", "tokenizer.vocab_size=300", *SHAPE, *SMALL, "train.max_steps=20",
    "corpus.held_out.validation=0.1", "corpus.held_out.test=0.1", "train.validate_every=10",
)  # fmt: skip
TUNED = (
    "experiment=transfer/classification", "corpus.train.files=train.tsv", "corpus.test.files=test.tsv",
    "train.initial=masked", *SMALL, "train.max_steps=20", "train.validate_every=10", "train.checkpoint_every=10",
)  # fmt: skip


def text(random: np.random.Generator, is_good: bool) -> str:
    words = [WORDS[i] for i in random.integers(0, len(WORDS), random.integers(4, 9))]
    words.insert(int(random.integers(0, len(words))), str(random.choice(GOOD if is_good else BAD)))
    return " ".join(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    give_database(tmp_path_factory, folder / "outputs" / "mlflow.db")
    for name, count in (("train", 200), ("test", 40)):
        rows = [f"{text(random, i % 2 > 0)}\t{'good' if i % 2 else 'bad'}" for i in range(count)]
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{row}\n" for row in rows))
    first = (folder / "test.tsv").read_text().split("\n")[1].split("\t")[0]
    sentences = [f"{text(random, i % 3 > 0).capitalize()}." for i in range(200)]
    (folder / "text.txt").write_text(" ".join([*sentences, f"{first.capitalize()}."]) + "\n")
    return folder


@pytest.fixture(scope="module")
def masked(place) -> Outcome:
    return transloom(place, "run", *MASKED)


@pytest.fixture(scope="module")
def tuned(place, masked) -> Outcome:
    return transloom_here(place, "run", *TUNED, "name=first")


def test_an_encoder_is_pretrained_without_the_sentences_of_the_test_set(place, masked):
    assert masked.code == 0, masked.said
    assert re.search(r"^contaminated +\d", masked.out, re.MULTILINE), masked.out
    assert re.search(r"^test masked_accuracy +\d+\.\d\d +of \d+ masked tokens$", masked.out, re.MULTILINE), masked.out
    assert re.search(r"^test masked_accuracy of a most frequent token +\d", masked.out, re.MULTILINE), masked.out
    assert "train.initial=masked" in masked.out
    refused = transloom_here(place, "generate", "masked", "the", code=2)
    assert "train.initial=masked" in refused.err, refused.said


def test_a_classifier_begins_with_it_and_ends_with_accuracy_and_a_picture(place, tuned):
    assert tuned.code == 0, tuned.said
    assert re.search(r"^Initial +[\d,]+ of [\d,]+ numbers from ", tuned.out, re.MULTILINE), tuned.out
    assert "begin with random weights: head" in tuned.out
    for name in (
        "accuracy",
        "accuracy of a majority class",
        r"accuracy of a TF-IDF \+ logistic regression",
        "macro_f1",
    ):
        assert re.search(rf"^test {name} +\d+\.\d\d", tuned.out, re.MULTILINE), tuned.out
    assert "transloom classify first < your_text" in tuned.out
    picture = re.search(r"^Picture +(\S+)$", tuned.out, re.MULTILINE)
    assert picture and Path(picture[1]).read_bytes().startswith(b"\x89PNG")
    about = read_json(folder_of(place, "first") / "model" / "config.json")
    assert about["labels"] == ["bad", "good"] and about["task"] == "classification" and "initial" in about


def test_its_page_in_mlflow_has_the_scores_the_baselines_and_the_picture(place, tuned):
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "first"]
    metrics = run.data.metrics
    assert {"test/accuracy", "test/macro_f1", "test/accuracy_half_width", "validation/accuracy"} <= metrics.keys()
    assert {"test/accuracy_of_majority_class", "test/accuracy_of_TF-IDF_logistic_regression"} <= metrics.keys()
    assert "`transloom classify first < your_text`" in run.data.tags["mlflow.note.content"]
    artifacts = place / "outputs" / "mlartifacts" / run.info.run_id / "artifacts"
    assert list(artifacts.rglob("test_confusion.png"))


def test_lines_are_labelled_as_tsv_or_json(place, tuned, monkeypatch):
    monkeypatch.chdir(place)
    (place / "lines.txt").write_text("the film of its good actors\nthe dull story\n")
    outcome = transloom_here(place, "classify", "first", "lines.txt")
    assert re.fullmatch(r"((good|bad)\t[01]\.\d{4}\n){2}", outcome.out), outcome.said
    records = [
        json.loads(line)
        for line in transloom_here(place, "classify", "first", "lines.txt", "format=jsonl").out.splitlines()
    ]
    assert [f"{one['label']}\t{one['probability']:.4f}" for one in records] == outcome.out.splitlines()
    assert all(sum(one["probabilities"].values()) == pytest.approx(1.0, abs=1e-3) for one in records)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a good film\n\n")))
    refused = transloom_here(place, "classify", "first", code=2)
    assert "line 2" in refused.err and len(refused.out.splitlines()) == 1, refused.said
    wrong = transloom_here(place, "classify", "first", "lines.txt", "format=xml", code=2)
    assert wrong.err.startswith("transloom: format=xml"), wrong.said
    other = transloom_here(place, "classify", "masked", "lines.txt", code=2)
    assert "task=classification" in other.err, other.said
