"""The whole path through the real command line, real Ray and a real MLflow store, and what is refused on the way."""

import fcntl
import re
import sys
from pathlib import Path

import pytest
from command import TINY, transloom, transloom_here
from runs import STEPS, VALIDATION, folder_of, losses, mlflow_runs

from transloom.jobs.__main__ import main
from transloom.pipeline.files import read_json

pytestmark = pytest.mark.slow


def test_run_tells_what_a_person_wants_to_know(place, whole):
    said = whole.out
    for stage in ("corpus", "tokenizer", "shards", "train", "evaluate"):
        assert re.search(rf"^{stage} +[\d.:]+( s)?$", said, re.MULTILINE), said
    for score, efficiency in (("bleu", "no"), ("chrf", "yes")):  # the signature in one piece, so that it can be copied
        line = rf"^test {score} +\d+\.\d\d +nrefs:1\|case:mixed\|eff:{efficiency}\|\S+\|version:[\d.]+$"
        assert re.search(line, said, re.MULTILINE), said
    for word in ("source", "reference", "translation"):
        assert len(re.findall(rf"^  {word} +\S", said, re.MULTILINE)) == 5, said
    assert "target tokens/s" in said
    assert str(folder_of(place, "whole") / "checkpoints") in said
    assert "transloom ui" in said
    assert "transloom translate whole < your_text" in said
    assert not whole.err


def test_run_is_one_finished_run_in_mlflow(place, whole):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "whole"]
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["model.d_model"] == "32"
    assert run.data.params["cluster.num_workers"] == "2"
    assert re.match(r"[0-9a-f]{40}", run.data.tags["mlflow.source.git.commit"])
    prepared = read_json(folder_of(place, "whole") / "prepared.json")
    for stage, tag in (("corpus", "corpus.hash"), ("shards", "shards.hash")):
        assert run.data.tags[tag] == read_json(Path(prepared[stage]) / "manifest.json")["key"]
    assert re.fullmatch(r"[0-9a-f]{64}", run.data.tags["tokenizer.hash"])

    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == sorted(losses(folder_of(place, "whole")).items())
    assert [step for step in sorted(losses(folder_of(place, "whole")))] == list(range(5, STEPS + 1, 5))
    for name in VALIDATION:
        assert sorted(point.step for point in client.get_metric_history(run_id, name)) == [50, 100, 150]
    assert {"test/bleu", "test/chrf", "test/ter", "test/length_ratio"} <= run.data.metrics.keys()
    assert 0 <= run.data.metrics["test/bleu_half_width"] < 50
    assert "tok:13a" in run.data.tags["signature.bleu"]
    assert run.data.tags["mlflow.note.content"].startswith(f"- Test: **BLEU {run.data.metrics['test/bleu']:.2f}**")
    assert not {"name", "output_dir", "tracking.uri"} & run.data.params.keys()

    artifacts = place / "outputs" / "mlartifacts" / run_id / "artifacts"
    assert (artifacts / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for table, rows in (("test_samples.json", 5), ("validation_samples.json", 15)):
        assert len(read_json(artifacts / table)["data"]) == rows
    assert (artifacts / "config.yaml").exists()

    models = {model.name: model for model in client.search_logged_models([run.info.experiment_id])}
    assert {"step-50", "step-100", "step-150", "averaged-150"} <= models.keys()
    assert {metric.key for metric in models["step-100"].metrics or []} >= set(VALIDATION)
    scores = {metric.key: metric.value for metric in models["averaged-150"].metrics or []}
    assert scores["test/bleu"] == run.data.metrics["test/bleu"]
    assert {info.path for info in client.list_logged_model_artifacts(models["averaged-150"].model_id)} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.model",
    }


def test_the_same_command_again_finds_everything_done(place, whole, monkeypatch, capsys):
    folder = folder_of(place, "whole")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    runs = len(mlflow_runs(place))
    with monkeypatch.context() as patched:
        patched.chdir(place)
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name in ("ray", "mlflow"):  # neither is started, which would take longer than all the rest
            patched.setitem(sys.modules, name, None)
        assert main(["run", *TINY, "name=whole"]) == 0
    said = capsys.readouterr().out
    for stage in ("corpus", "tokenizer", "shards", "train", "evaluate"):
        assert re.search(rf"^{stage} +done before$", said, re.MULTILINE), said
    assert re.findall("^test bleu.*", said, re.MULTILINE) == re.findall("^test bleu.*", whole.out, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    assert len(mlflow_runs(place)) == runs


def test_translate_gives_a_line_for_a_line(place, whole):
    text = "Anna has been learning Icelandic for 9 days.\n\nThe bill comes to $102.99.\n\u2028Thomas\n".encode()
    piped = transloom(place, "translate", "whole", text=text)
    lines = piped.out.split("\n")
    assert len(lines) == 5 and lines[4] == ""
    assert lines[1] == "" and lines[0] and lines[2]
    (place / "text.en").write_bytes(text)
    model = folder_of(place, "whole") / "model"
    assert transloom_here(place, "translate", str(model), "text.en").out == piped.out


def test_evaluating_with_another_search_adds_a_result(place, whole):
    folder = folder_of(place, "whole") / "evaluation"
    before = set(folder.iterdir())
    (run,) = [one for one in mlflow_runs(place) if one.info.run_name == "whole"]
    assert "beam 1, length penalty 0" in transloom_here(place, "evaluate", "resume=whole", "decode=greedy").out
    (added,) = set(folder.iterdir()) - before
    assert added.name.startswith("beam1-penalty0.0-")
    assert "beam: 4" in (folder_of(place, "whole") / "config.yaml").read_text(encoding="utf-8")
    (after,) = [one for one in mlflow_runs(place) if one.info.run_name == "whole"]
    assert after.data.metrics["test/bleu"] == run.data.metrics["test/bleu"]
    assert "test_beam1-penalty0.0/bleu" in after.data.metrics and "resumed.decode.beam" not in after.data.tags
    assert before
    lines = (added / "test.hypotheses").read_bytes().split(b"\n")
    assert len(lines) == 21 and lines[20] == b""
    greedy, beam = (read_json(one / "result.json") for one in (added, before.pop()))
    assert greedy["test"]["bleu"]["signature"] == beam["test"]["bleu"]["signature"]
    assert greedy["steps_averaged"] == beam["steps_averaged"] == [100, 150]


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=whole", "model.d_model=64"], r"^transloom: model\.d_model: can't change when a run is resumed"),
        (["resume=whole", "corpus=phrasebook_en_fr"], r"^transloom: corpus: can't change when a run is resumed"),
        (["resume=whole", "tokenizer.vocab_size=400"], r"^transloom: tokenizer\.vocab_size: can't change"),
        (["resume=hole", "train.max_steps=200"], r"^transloom: there is no run 'hole' in .*; the latest there: \S"),
    ],
)
def test_a_resumed_run_stays_the_run_it_was(place, whole, monkeypatch, capsys, words, message):
    monkeypatch.chdir(place)
    assert main(["train", *words]) == 2
    assert re.search(message, capsys.readouterr().err.strip())


def test_a_name_is_not_given_to_another_configuration(place, whole, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["run", *TINY, "name=whole", "seed=7"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("transloom: name: the run whole exists and was made with another")


def test_two_commands_on_one_run(place, whole):
    settings = (folder_of(place, "whole") / "config.yaml").read_bytes()
    with open(folder_of(place, "whole") / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(b"somebody else")
        lock.truncate()
        lock.flush()
        outcome = transloom_here(place, "run", *TINY, "name=whole", "decode=greedy", code=2)
    assert "the run whole is in use by somebody else" in outcome.err
    assert (folder_of(place, "whole") / "config.yaml").read_bytes() == settings


def test_more_workers_than_the_cluster_has_room_for(place):
    words = [word for word in TINY if "num_workers" not in word and "batch.tokens" not in word]
    outcome = transloom_here(place, "run", *words, "batch.tokens=102400", "cluster.num_workers=400", code=2)
    assert re.match(
        r"transloom: cluster\.num_workers: 400 workers of 1 CPU need 400, but the cluster has \d+", outcome.err
    )
    assert outcome.seconds < 300, "room was waited for"
    assert not list((place / "outputs" / "runs").glob("phrasebook*")), "a run that never was"
