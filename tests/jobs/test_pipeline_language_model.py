"""A language model through the real command line: a run, its page in MLflow, a text continued, and another run that
begins with its weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from command import Outcome, transloom, transloom_here
from language_folder import write_language_model
from runs import differing, folder_of, mlflow_runs
from safetensors.torch import load_file

from transloom.pipeline.files import read_json

pytestmark = pytest.mark.slow

TINY = (
    "experiment=language_model/demo",
    "corpus=text",
    "corpus.train.text=text",
    "corpus.held_out.validation=0.2",
    "corpus.held_out.test=0.2",
    "tokenizer.vocab_size=300",
    "model.layers=1",
    "model.d_model=32",
    "model.d_ff=64",
    "model.num_heads=2",
    "model.key_value_heads=1",
    "model.max_positions=32",
    "batch.tokens=256",
    "batch.micro_tokens=64",
    "schedule.warmup_steps=2",
    "train.max_steps=20",
    "train.log_every=5",
    "train.validate_every=10",
    "train.checkpoint_every=10",
    "precision=fp32",
    "cluster.num_workers=2",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "text").mkdir()
    for number in range(40):
        lines = [f"{number * i} is {number} times {i}." for i in range(3 + 10 * (number % 4))]
        (folder / "text" / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def first(place) -> Outcome:
    return transloom(place, "run", *TINY, "name=first")


def test_a_run_ends_with_bits_per_byte_beside_a_5_gram_model_and_samples(place, first):
    assert first.code == 0, first.said
    row = re.search(r"^test bits_per_byte +(\d\.\d{4}) +context:32\|stride:32\|ends:yes$", first.out, re.MULTILINE)
    baseline = re.search(r"^test bits_per_byte of a 5-gram of bytes +(\d\.\d{4})$", first.out, re.MULTILINE)
    assert row and baseline, first.out
    assert len(re.findall(r"^  prompt +\S", first.out, re.MULTILINE)) == 5
    assert re.search(r"^Cleaned +40 training documents read: ", first.out, re.MULTILINE), first.out
    assert "transloom generate first " in first.out and not first.err
    folder = folder_of(place, "first")
    (result,) = (read_json(file) for file in (folder / "evaluation").glob("*/result.json"))
    assert result["test"]["bits_per_byte"]["value"] == pytest.approx(float(row[1]), abs=1e-4)
    assert result["baselines"]["test"] == {"5-gram of bytes": pytest.approx(float(baseline[1]), abs=1e-4)}
    lines = (Path(result["folder"]) / "test.hypotheses").read_text().splitlines()
    sizes = [json.loads(line) for line in lines]
    total = sum(one["bits"] for one in sizes) / sum(one["bytes"] for one in sizes)
    assert total == pytest.approx(result["test"]["bits_per_byte"]["value"], abs=1e-4)


def test_its_page_in_mlflow_has_scores_baseline_and_samples_by_step(place, first):
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "first"]
    assert run.info.status == "FINISHED" and run.data.tags["task"] == "language_model"
    metrics = run.data.metrics
    assert {"test/bits_per_byte", "test/bits_per_byte_of_5-gram_of_bytes", "validation/perplexity"} <= metrics.keys()
    assert metrics["train/text_tokens_per_second"] > 0 and "corpus.documents_read" in run.data.tags
    assert run.data.tags["mlflow.note.content"].startswith("- Test: **bits per byte ")
    tables = place / "outputs" / "mlartifacts" / run.info.run_id / "artifacts"
    samples = read_json(tables / "validation_samples.json")
    assert samples["columns"] == ["step", "prompt", "continuation"]
    assert sorted({row[0] for row in samples["data"]}) == [10, 20]


def test_the_same_command_again_finds_everything_done(place, first):
    again = transloom_here(place, "run", *TINY, "name=first")
    assert again.code == 0 and len(re.findall("done before", again.out)) == 5, again.said


def test_a_text_is_continued_and_scored(place, first, capsys, monkeypatch):
    monkeypatch.chdir(place)
    outcome = transloom_here(place, "generate", "first", "12 is ", "max_new_tokens=8", "seed=3")
    assert outcome.code == 0 and outcome.out.endswith("\n") and "step" in outcome.err, outcome.said
    scored = transloom_here(place, "score", "first", "text/01.txt")
    assert scored.code == 0 and "bits per byte" in scored.out, scored.said
    refused = transloom_here(place, "translate", "first", "text/01.txt", code=2)
    assert refused.code == 2 and "transloom generate" in refused.err, refused.said


def test_a_training_begins_with_the_weights_of_another_run(place, first):
    words = [*TINY, "name=second", "train.initial=first", "train.max_steps=1", "schedule.warmup_steps=1"]
    # So small a rate that a step changes no weight by a visible amount.
    words += ["schedule.peak_learning_rate=1e-12", "optimizer.weight_decay=0"]
    second = transloom_here(place, "run", *words)
    assert second.code == 0 and re.search(r"^Initial +([\d,]+) of \1 numbers from ", second.out, re.MULTILINE), (
        second.said
    )
    begun = load_file(folder_of(place, "first") / "model" / "model.safetensors")
    ended = load_file(folder_of(place, "second") / "model" / "model.safetensors")
    assert all(torch.allclose(begun[name], tensor, atol=1e-8) for name, tensor in ended.items())
    assert not differing(load_file(folder_of(place, "second") / "initial/step_00000000/weights.safetensors"), begun)
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "second"]
    assert (
        run.data.tags["initial.sha256"]
        == read_json(folder_of(place, "first") / "model/config.json")["sha256"]["model.safetensors"]
    )
    # Named by its folder, the same weights find the same run.
    words[words.index("train.initial=first")] = "train.initial=outputs/runs/first/model"
    again = transloom_here(place, "run", *words)
    assert again.code == 0 and len(re.findall("done before", again.out)) == 5, again.said


def test_a_hugging_face_folder_is_fine_tuned_by_adapters_and_exported_again(place):
    write_language_model(place / "gpt", padding=0)
    words = [word for word in TINY if not word.startswith(("model.", "tokenizer."))]
    words += ["name=adapted", "train.initial=gpt", "train.lora.rank=2", "train.max_steps=10"]
    outcome = transloom_here(place, "run", *words)
    assert outcome.code == 0 and re.search(r"^  trained: [\d,]+ of [\d,]+ parameters$", outcome.out, re.MULTILINE), (
        outcome.said
    )
    exported = transloom_here(place, "export", "adapted", "exported", "format=huggingface")
    assert exported.code == 0, exported.said
    begun, ended = (load_file(place / folder / "model.safetensors") for folder in ("gpt", "exported"))
    assert begun.keys() == ended.keys() and {name: x.shape for name, x in begun.items()} == {
        name: x.shape for name, x in ended.items()
    }
    assert differing(begun, ended) == [
        f"transformer.h.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    before, after = (json.loads((place / name / "tokenizer.json").read_text()) for name in ("gpt", "exported"))
    assert after == before
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "adapted"]
    assert run.data.metrics["training/trained_parameters"] < run.data.metrics["training/parameters"] / 2
