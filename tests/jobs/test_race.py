"""A race's contenders are ordinary configurations that differ in what they are compared by, and in nothing else."""

import json
import re
import shlex
import sys

import pytest
from command import TINY, transloom_here
from metrics import BLEU, PERPLEXITY

from transloom.jobs.__main__ import main
from transloom.jobs.cli import configuration
from transloom.jobs.commands.race import contenders_of, print_race
from transloom.jobs.config.messages import CONTENDERS
from transloom.model.config import RecurrentConfig, TransformerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.tasks.build import TaskName, selecting_metric

EXPERIMENT = "experiment=attention_vs_recurrence"


def contenders(*words: str):
    return contenders_of(configuration("race", words), words)


def test_the_experiment_races_attention_against_recurrence_for_equal_time():
    found = contenders(EXPERIMENT)
    assert [type(one.model) for one in found.values()] == [TransformerConfig, RecurrentConfig]
    transformer, lstm = found.values()
    assert transformer.train == lstm.train and transformer.train.max_minutes > 0
    assert (transformer.batch, transformer.tokenizer) == (lstm.batch, lstm.tokenizer)
    assert not transformer.race.contenders


def test_contenders_are_given_on_the_command_line_as_the_messages_say():
    (word,) = shlex.split(CONTENDERS)
    assert list(contenders(word, "train.max_minutes=1")) == ["a", "b"]


def test_the_command_line_has_the_last_word_for_all():
    found = contenders(EXPERIMENT, "schedule.peak_learning_rate=3e-4", "train.max_minutes=1.5")
    assert {one.schedule.peak_learning_rate for one in found.values()} == {3e-4}
    assert {one.train.max_minutes for one in found.values()} == {1.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=demo"], r"^race\.contenders: names at least two .*'race\.contenders={a: "),
        ([EXPERIMENT, "train.max_minutes=0"], r"^train\.max_minutes: must say how long"),
        (
            [EXPERIMENT, "race.contenders.lstm=['model.num_haeds=2']"],
            r"^race\.contenders\.lstm: model\.num_haeds: no such",
        ),
        ([EXPERIMENT, "race.contenders.lstm=['tokenizer=bpe_8k']"], r"^race\.contenders\.lstm: changes tokenizer"),
        (
            [EXPERIMENT, "race.contenders.lstm=['train.max_minutes=9']"],
            r"^race\.contenders\.lstm: changes train\.max_minutes",
        ),
        ([EXPERIMENT, "race.lengths=[0]"], r"^race\.lengths: must be at least 1"),
        (
            [EXPERIMENT, "race.contenders={a:['model=small'],b:['model=tiny']}", "model=small"],
            r"^race\.contenders\.b: is the same as a",
        ),
        ([EXPERIMENT, "race.contenders={a/b:['model=small']}"], r"^race\.contenders: names become names of runs"),
    ],
)
def test_what_does_not_compare_is_refused_by_name(words, message):
    with pytest.raises(UserError, match=message):
        contenders(*words)


@pytest.mark.parametrize(("metric", "signature"), [(BLEU, "nrefs:1|tok:13a"), (PERPLEXITY, "")])
def test_the_table_has_the_metric_of_the_task(tmp_path, capsys, metric, signature):
    scores = {split: {"value": value, "signature": signature} for split, value in (("validation", 9.25), ("test", 8.0))}
    one = dict.fromkeys(("parameters", "steps", "seconds", "flops", "source_tokens_per_second"), 10)
    one |= {"target_tokens_per_second": 10, "run": "race-a", metric.name: scores, "search": None}
    result = {"corpus": "demo", "max_minutes": 1, "machine": "x", "workers": 1, "precision": "fp32", "lengths": [8]}
    columns = ("source", "target")
    print_race(result | {"runs": {"a": one | {"speed_by_length": {"8": 1.0}}}}, tmp_path, metric, columns)
    out = capsys.readouterr().out
    head, row = [next(line for line in out.splitlines() if word in line) for word in ("source tok/s", "a   ")]
    assert re.split(r"\s{2,}", head.strip())[-2:] == [f"validation {metric.title}", f"test {metric.title}"]
    assert row.split()[-2:] == [metric.shown(9.25), metric.shown(8.0)]
    assert (f"{metric.title} of the averaged models: nrefs:1|tok:13a" in out) == bool(signature)
    assert f"{metric.title} of the averaged models\n" in out or signature


def test_the_table_of_language_models_has_no_source_and_no_speed_by_length(tmp_path, capsys):
    metric = selecting_metric(TaskName.language_model)
    one = dict.fromkeys(("parameters", "steps", "seconds", "flops", "text_tokens_per_second"), 10)
    scores = {"validation": {"value": 1.5, "signature": "context:64"}}  # nothing is held out for a test
    one |= {"run": "race-a", metric.name: scores, "search": "", "speed_by_length": {}}
    result = {"corpus": "demo", "max_minutes": 1, "machine": "x", "workers": 1, "precision": "fp32", "lengths": []}
    print_race(result | {"runs": {"a": one}}, tmp_path, metric, ("text",))
    out = capsys.readouterr().out
    head, row = [next(line for line in out.splitlines() if word in line) for word in ("text tok/s", "a   ")]
    assert re.split(r"\s{2,}", head.strip())[-3:] == ["text tok/s", "cost", "validation bits per byte"]
    assert row.split()[-1] == "1.5000"
    assert "bits per byte of the averaged models: context:64" in out
    assert "sentence length" not in out


@pytest.mark.slow
def test_a_race_trains_both_and_is_done_when_given_again(place, monkeypatch, capsys):
    words = [word for word in TINY if not word.startswith(("model.", "train.max_steps", "cluster."))]
    small = 'model.d_model=32","model.encoder_layers=1","model.decoder_layers=1'
    both = f'{{transformer:["model=tiny","{small}"],lstm:["model=lstm","{small}"]}}'
    words += [f"race.contenders={both}", "race.lengths=[8,16]", "train.max_minutes=0.05", "name=tiny"]
    words += ["cluster.num_workers=1"]
    first = transloom_here(place, "race", *words)
    result = json.loads((place / "outputs" / "races" / "tiny" / "race.json").read_bytes())
    assert set(result["runs"]) == {"transformer", "lstm"}
    for name, one in result["runs"].items():
        assert one["run"] == f"tiny-{name}" and one["run"] in first.out
        assert 3.0 <= one["seconds"] < 30.0
        assert one["curve"][-1]["step"] == one["steps"]
        assert one["curve"][-1]["flops"] == one["flops"]
        assert one["curve"][-1]["seconds"] == pytest.approx(one["seconds"])
        assert all(speed > 0 for speed in one["speed_by_length"].values())
        assert one["bleu"]["test"]["signature"] in first.out
    assert (place / "outputs" / "races" / "tiny" / "race.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("ray", "mlflow"):  # neither is started
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["race", *words]) == 0
    again = capsys.readouterr().out
    assert "minutes of training" not in again and "test BLEU" in again
