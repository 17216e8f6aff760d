"""The bench as a person types it: what is refused at once, what is left out and said, and a whole small bench."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from command import TINY, transloom_here

from transloom.jobs.__main__ import main
from transloom.jobs.bench import contenders as bench_contenders
from transloom.jobs.bench import decoding as bench_decoding
from transloom.jobs.commands.bench import _name_of, _sort
from transloom.jobs.config.compose import load_config
from transloom.model.config import Norm
from transloom.pipeline.bench.config import BenchConfig, Part
from transloom.pipeline.bench.report import BARE, CONTROL, MARIAN, TWO, ZERO0, ZERO1
from transloom.pipeline.bench.search import Found, Program, Request
from transloom.pipeline.bench.task import Kind
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.processes import Contender

REFUSED = {
    "part=trian": "part=trian: there is all, train, decode, length",
    "rounds=few": "rounds=few: must be a whole number",
    "steps=0": "steps: must be at least 1, not 0",
    "part=decode": "part=decode: needs a model",
    "my-run part=train": "part=train: measures no decoding, and my-run is to decode with",
    "resume=my-run": "resume: give the run as a plain word: transloom bench my-run part=decode",
    "cluster.address=auto": "cluster.address: the bench measures this machine",
    "precision=fp16": "precision.dtype: the bench compares in bf16 or fp32",
    "model.positions=learned": "model.positions: ",
    "model.d_k=8": "model.d_k: ",
    "model=lstm": "model: the bench compares Transformers",
    "one two": "usage: transloom bench [run or model folder] [part=train|decode|length] [rounds=5] [steps=10] ",
    "part=length my-run": "part=length: measures new models, and my-run is to decode with",
    "part=length lengths=64,32": "lengths: must be rising numbers of at least 2, not 64,32",
    "part=length lengths=1k": "lengths=1k: must be whole numbers, such as 1024,2048",
    "part=length most_seconds=0": "most_seconds: must be at least 1, not 0",
    "part=length model.positions=alibi": "model.positions: ",
    "part=length experiment=demo": "model: part=length measures language models",
    "nowhere": "there is no run 'nowhere'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_measured_is_refused_at_once(words: str, tmp_path: Path, capsys) -> None:
    assert main(["bench", *words.split(), f"output_dir={tmp_path / 'outputs'}"]) == 2
    assert REFUSED[words] in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_the_benchs_own_words_are_told_from_settings_and_folders() -> None:
    bench, folders, settings = _sort(["my-run", "part=train", "rounds=2", "model=tiny", "--cfg", "job"])
    assert bench == replace(BenchConfig(), part=Part.train, rounds=2)
    assert folders == ["my-run"]
    assert settings == ["experiment=bench", "model=tiny", "--cfg", "job"]
    assert _sort(["experiment=demo"])[2] == ["experiment=demo"]


def test_a_decoding_is_named_after_its_model() -> None:
    assert _name_of(Path("outputs/runs/first/model")) == "first"
    assert _name_of(Path("copies/captions")) == "captions"


def test_who_can_not_take_part_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = SimpleNamespace(
        shards=SimpleNamespace(folder="shards"),
        tokenizer=SimpleNamespace(manifest={"counts": {"vocab_size": 400}}),
    )
    task = bench_contenders.task_of(load_config(["experiment=bench"]), cast(Prepared, stages))
    monkeypatch.setattr(bench_contenders, "find_spec", lambda name: object())
    monkeypatch.setattr(bench_contenders, "cores", lambda: 2)
    tasks, notes = bench_contenders.contenders_of(task)
    assert set(tasks) == {BARE, ZERO0, ZERO1, TWO, CONTROL, MARIAN} and not notes
    assert tasks[TWO][1] == 2 and all(members == 1 for name, (_, members) in tasks.items() if name != TWO)
    assert tasks[CONTROL][0].kind is Kind.torch and tasks[ZERO1][0].engine.zero_stage == 1

    monkeypatch.setattr(bench_contenders, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_contenders, "cores", lambda: 1)
    tasks, notes = bench_contenders.contenders_of(task)
    assert set(tasks) == {BARE, ZERO0, ZERO1, CONTROL}
    assert any("transformers is not installed (pip install transformers)" in note for note in notes)
    assert any(TWO in note and "two processor cores" in note for note in notes)

    monkeypatch.setattr(bench_contenders, "find_spec", lambda name: object())
    _, notes = bench_contenders.contenders_of(replace(task, model=replace(task.model, norm=Norm.pre)))
    assert any("post-norm" in note for note in notes)


def test_a_format_that_can_not_be_written_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def export(model: Path, folder: Path, to: object) -> None:
        if folder.name == Program.ctranslate2.value:
            raise UserError("the package ctranslate2 is missing")

    monkeypatch.setattr(bench_decoding, "export", export)
    notes: list[str] = []
    assert list(bench_decoding._exported(tmp_path, tmp_path, notes)) == [Program.huggingface]
    assert notes == ["CTranslate2 is left out: the package ctranslate2 is missing"]


class Reversers:
    """A contender of two members, which say each sentence backwards."""

    name, size = "ours, 2 x 1", 2

    def send(self, *requests: Request) -> None:
        self.requests = requests

    def receive(self) -> list[Found]:
        said = [[ids[::-1] for ids in request.sources] for request in self.requests]
        return [Found(said[0], seconds=3.0, peak_bytes=10), Found(said[1], seconds=2.0, peak_bytes=20)]


def test_sentences_are_dealt_out_to_the_members_and_come_back_in_their_order() -> None:
    ids = [[4, 5, 6], [7], [8, 9], [4, 4, 4, 5], [6, 7], [5], [9, 8, 7]]
    contender = Reversers()
    search = bench_decoding._Search(cast(Contender, contender), ids, BeamConfig(), use_gpu=False)
    found = search.translate(beam=3, length_penalty=0.0)
    assert found == Found([one[::-1] for one in ids], seconds=3.0, peak_bytes=30)
    first, second = contender.requests
    assert first.config == second.config == BeamConfig(beam=3, length_penalty=0.0)
    # By length, in turns: each member has as much to do.
    assert sorted(map(len, first.sources)) == [1, 2, 3, 4] and sorted(map(len, second.sources)) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_whole_small_bench(tmp_path: Path) -> None:
    """Every training under Ray starts eight processes or so: with one micro-batch a step there is no third one."""
    words = [word for word in TINY if not word.startswith(("cluster", "engine", "train.", "batch.tokens"))]
    sizes = ("batch.tokens=256", "rounds=1", "steps=2", "train_steps=60", "sentences=10")
    said = transloom_here(tmp_path, "bench", *words, *sizes, "name=small", "tracking=off").out
    result = json.loads((tmp_path / "outputs" / "bench" / "small" / "bench.json").read_bytes())
    contenders = result["training"]["contenders"]
    assert {ZERO0, ZERO1, BARE, CONTROL} <= set(contenders)
    losses = [one["loss"] for one in contenders.values()]
    assert max(losses) - min(losses) < 0.2
    tokens = {one["turns"][0]["target_tokens"] for one in contenders.values()}
    assert len(tokens) == 1
    assert result["decoding"]["without_length_penalty"]["ours"]["identical_to_ours"] == 1.0
    for name in contenders:
        assert f"\n{name} " in said
    assert "at least 0.97" in said and "bench.png" in said
    assert (tmp_path / "outputs" / "bench" / "small" / "bench.png").stat().st_size > 10_000
