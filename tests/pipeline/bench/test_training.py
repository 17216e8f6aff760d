"""The contenders of training do the same work: the same pairs, the same model, tokens counted without padding."""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transloom.model.config import Norm
from transloom.pipeline.bench.kept import begin
from transloom.pipeline.bench.peers import PlainTransformer, copy_weights, padded_steps
from transloom.pipeline.bench.task import Kind, Skip, Task, Weights, initial_model
from transloom.pipeline.bench.training import make_matmul, make_member
from transloom.pipeline.bench.turns import rounds_of, take_turns
from transloom.pipeline.data.pairs import open_pairs, pair_steps
from transloom.pipeline.data.tokenizer import EOS_ID, PAD_ID
from transloom.pipeline.processes import Meeting

STEPS = 12  # goes into a second epoch


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_padded_steps_hold_the_pairs_of_ours(task: Task, shards: Path) -> None:
    pairs = open_pairs(shards, "train")
    ours = islice(pair_steps(pairs, task.batch, task.seed, rank=0, world_size=1), STEPS)
    for step, padded in zip(ours, islice(padded_steps(pairs, task.batch, task.seed), STEPS), strict=True):
        assert (padded.tokens["source"], padded.tokens["target"]) == (step.tokens["source"], step.tokens["target"])
        for batch, other in zip(step.batches, padded.batches, strict=True):
            real = other.labels != PAD_ID
            assert torch.equal(other.labels[real], batch.labels)
            assert torch.equal(other.source[other.source != PAD_ID], batch.source[: batch.source_tokens])
            assert torch.equal(other.target[real], batch.target[: len(batch.labels)])
            assert (other.labels[real] == EOS_ID).sum() == len(other.labels)


def test_tokens_are_counted_without_padding(task: Task, shards: Path) -> None:
    pairs = open_pairs(shards, "train")
    cells = counted = 0
    for step in islice(padded_steps(pairs, task.batch, task.seed), STEPS):
        assert step.tokens["target"] == sum(int((batch.labels != PAD_ID).sum()) for batch in step.batches)
        assert step.tokens["source"] == sum(int((batch.source != PAD_ID).sum()) for batch in step.batches)
        cells += sum(batch.labels.numel() for batch in step.batches)
        counted += step.tokens["target"]
    assert counted < cells


@pytest.mark.parametrize("norm", Norm)
def test_the_control_equals_ours_with_the_same_weights(task: Task, shards: Path, norm: Norm) -> None:
    task = replace(task, model=replace(task.model, norm=norm))
    ours = initial_model(task).double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # biases and normalisations of other than zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.1)
    control = PlainTransformer(task.model, task.vocab_size).double().eval()
    copy_weights(ours, control)
    assert sum(one.numel() for one in control.parameters()) == sum(one.numel() for one in ours.parameters())
    pairs = open_pairs(shards, "train")
    (step,) = islice(pair_steps(pairs, task.batch, task.seed, rank=0, world_size=1), 1)
    (padded,) = islice(padded_steps(pairs, task.batch, task.seed), 1)
    for batch, other in zip(step.batches, padded.batches, strict=True):
        hidden = ours(batch.source, batch.source_layout, batch.target, batch.target_layout)[: len(batch.labels)]
        theirs = control(other.source, other.target)[other.labels != PAD_ID]
        torch.testing.assert_close(hidden @ ours.embedding.weight.T, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [Kind.ours, Kind.torch, Kind.marian])
@pytest.mark.usefixtures("one_thread")
def test_all_learn_the_same(task: Task, kind: Kind) -> None:
    """Without dropout, which each draws in its own way, every loss is the same until rounding tells them apart."""
    if kind is Kind.marian:
        pytest.importorskip("transformers")
    task = replace(task, model=replace(task.model, dropout=0.0))
    ours, _ = make_member(task)
    other, _ = make_member(replace(task, kind=kind))
    for _ in range(3):
        burst, others = ours(4), other(4)
        assert burst is not None and others is not None
        assert (others.source_tokens, others.target_tokens) == (burst.source_tokens, burst.target_tokens)
        assert others.loss == pytest.approx(burst.loss, rel=1e-4)
        assert others.seconds > 0 and others.cpu_seconds > 0 and others.peak_bytes > 0


def test_weights_are_saved_under_the_names_of_the_model(task: Task, tmp_path: Path) -> None:
    ours, _ = make_member(task)
    ours(1)
    ours(Weights(str(tmp_path / "weights")))
    weights = load_file(tmp_path / "weights")
    model = initial_model(task)
    before = model.embedding.weight.clone()
    model.load_state_dict(weights)
    assert not torch.equal(model.embedding.weight, before)


def test_a_member_leaves_out_the_pairs_of_steps_that_were_measured_before(task: Task) -> None:
    """The turn after them is on the same pairs as without the stop."""
    whole, _ = make_member(task)
    whole(2)
    stopped, _ = make_member(task)
    stopped(1)
    stopped(Skip(1))
    (burst, other) = whole(3), stopped(3)
    assert burst is not None and other is not None
    assert (other.source_tokens, other.target_tokens) == (burst.source_tokens, burst.target_tokens)


def test_the_yardstick_gives_operations_per_second() -> None:
    answer, _ = make_matmul(False, torch.float32)
    assert 1e8 < answer(0.05) < 1e15


def test_two_contenders_take_turns(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    shown: list[tuple[str, int, int]] = []
    tasks = {"ours": task, "control": replace(task, kind=Kind.torch)}
    with Meeting() as meeting:
        names = [*tasks, "matmul"]
        lost = {name: meeting.start_processes(name, 1, {"OMP_NUM_THREADS": "1"}) for name in names}
        contenders = {name: meeting.meet(name, 1, lost[name]) for name in names}
        matmul = contenders.pop("matmul")
        matmul.send(partial(make_matmul, False, torch.float32))
        for name, contender in contenders.items():
            contender.send(partial(make_member, tasks[name]))
        for contender in (matmul, *contenders.values()):
            (ready,) = contender.receive()
            assert ready.threads == 1 and ready.imported_bytes > 0
        monkeypatch.setattr("transloom.pipeline.bench.turns.MATMUL_SECONDS", 0.05)
        monkeypatch.setattr("transloom.pipeline.bench.turns.WARM_UP_STEPS", 1)
        kept = begin(tmp_path, {})
        assert take_turns(contenders, matmul, 2, 2, kept, lambda *what: shown.append(what)) == {"ours": 5, "control": 5}
    rounds = rounds_of(kept, list(contenders))
    assert len(rounds.matmul) == 2
    for ours, control in zip(rounds.turns["ours"], rounds.turns["control"], strict=True):
        assert (ours.source_tokens, ours.target_tokens) == (control.source_tokens, control.target_tokens)
        assert ours.loss == pytest.approx(control.loss, rel=0.02)
        assert ours.seconds > 0 and ours.cpu_seconds > 0 and ours.other_cpu_seconds >= 0
    assert [turn.steps for turn in rounds.turns["ours"]] == [3, 5]
    order = [what.rpartition(" ")[2] for what, _, _ in shown if what.startswith("round")]
    assert order == ["ours", "control", "control", "ours"]
    assert [done for what, done, _ in shown if what.startswith("round")] == [0, 1, 2, 3]
