"""The loop on a task small enough to learn in seconds: copying a sentence of made-up words."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import Norm, RecurrentConfig, TransformerConfig
from transloom.model.flops import training_flops
from transloom.model.losses import LossSum
from transloom.pipeline.data.batches import BatchConfig, Step
from transloom.pipeline.data.pairs import collate_pairs, pair_steps
from transloom.pipeline.data.shards import SIDES
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.files import read_json
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.decoding import translate_tokens
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.tasks.task import Evaluation, Score, Task
from transloom.pipeline.tasks.translation import BLEU
from transloom.pipeline.tracking.spool import read_points
from transloom.pipeline.tracking.tracker import SpoolTracker
from transloom.pipeline.train.checkpoint import (
    average_weights,
    list_weights,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
)
from transloom.pipeline.train.divergence import OnDivergence
from transloom.pipeline.train.engine import Engine, EngineConfig, EngineName, make_engine
from transloom.pipeline.train.loop import train
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import EngineState, OptimizerConfig, Precision, PrecisionConfig, StepResult
from transloom.pipeline.train.schedule import ScheduleConfig, ScheduleName, learning_rate
from transloom.pipeline.train.session import Average, Reports, Session, TrainConfig, TrainState

VOCAB = 24
MODEL = TransformerConfig(
    d_model=32, d_ff=64, num_heads=4, encoder_layers=1, decoder_layers=1, dropout=0.1, norm=Norm.pre, max_positions=64
)
LSTM = RecurrentConfig(d_model=64, encoder_layers=2, decoder_layers=2, dropout=0.0)
BATCH = BatchConfig(tokens=512, micro_tokens=128)
TORCH = EngineConfig(name=EngineName.torch)
SCHEDULE = ScheduleConfig(name=ScheduleName.inverse_sqrt, warmup_steps=60, peak_learning_rate=5e-3)


class CopyPairs:
    """Sentences of 3 to 8 of 20 words, to be repeated."""

    columns = SIDES

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.sentences = [
            np.append(random.integers(4, VOCAB, random.integers(3, 9)), EOS_ID).astype(np.uint16) for _ in range(count)
        ]
        self.lengths = np.array([[len(one)] * 2 for one in self.sentences], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.sentences)

    def get(self, column: str, row: int) -> np.ndarray:
        return self.sentences[row]


def found(loss: float, bleu: float) -> Evaluation:
    return Evaluation(loss, {"bleu": Score("bleu", bleu)}, 1)


@dataclasses.dataclass
class Told:
    """What the loop reported."""

    metrics: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)
    progress: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    validated: list[int] = dataclasses.field(default_factory=list)

    def reports(self) -> Reports:
        def take(metrics: Mapping[str, float], step: int) -> None:
            self.metrics |= {(name, step): value for name, value in metrics.items()}

        return Reports(take, lambda step, _: self.validated.append(step), self.progress.append)

    def losses(self) -> dict[int, float]:
        return {step: value for (name, step), value in self.metrics.items() if name == "train/loss"}


def plan(pairs: Any, count: int, **settings: Any) -> list[Step]:
    return list(itertools.islice(pair_steps(pairs, BATCH, 3, rank=0, world_size=1, **settings), count))


def words(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def bleu(shape: ModelConfig, weights: Mapping[str, torch.Tensor], pairs: CopyPairs) -> float:
    model = build_model(shape, VOCAB).eval()
    model.load_state_dict(weights)
    found = translate_tokens(model, pairs.sentences, BeamConfig(beam=2))
    return score([words(one.tokens) for one in found], [words(one[:-1].tolist()) for one in pairs.sentences])[
        "bleu"
    ].value


def start(
    folder: Path,
    config: TrainConfig,
    wrap: Callable[[Engine], Any] = lambda engine: engine,
    shape: ModelConfig = MODEL,
    fresh: TrainState | None = None,
    engine: EngineConfig = TORCH,
    batch: BatchConfig = BATCH,
    schedule: ScheduleConfig = SCHEDULE,
    **changes: Any,
) -> tuple[Told, TrainState, Engine, str]:
    """Trains as a worker does: from the newest checkpoint, if there is one."""
    torch.manual_seed(1)
    model = build_model(shape, VOCAB)
    state, initial = fresh or TrainState(), None
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        initial, saved = load_checkpoint(newest)
        state = TrainState.of(saved)
    made = make_engine(
        TranslationObjective(model, config.label_smoothing).train(),
        OptimizerConfig(),
        PrecisionConfig(dtype=Precision.fp32),
        engine,
        torch.device("cpu"),
        initial,
    )
    told = Told()
    pairs, text = changes.pop("pairs", CopyPairs(2000, 0)), changes.pop("text", None)
    arguments: dict[str, Any] = {"validate": lambda step, path: found(1.0, float(step)), "reports": told.reports()}
    task = Task(
        selects=BLEU,
        loss_column="target",
        tokenizer="",
        model=lambda: model,
        objective=lambda model: TranslationObjective(model, config.label_smoothing),
        examples=lambda split: pairs,
        collate=collate_pairs,
        validate=lambda model: found(1.0, 0.0),
        evaluate=lambda *_: found(1.0, 0.0),
        text=text,
    )
    session = Session(
        config,
        engine=wrap(made),
        state=state,
        folder=folder,
        metadata={},
        selects=task.selects,
        flops=lambda tokens: training_flops(model.config, model.vocab_size, *tokens.values()),
        **arguments | changes,
    )
    reason = train(session, task, batch, 3, lambda step: learning_rate(schedule, step, config.max_steps, shape.d_model))
    return told, state, made, reason


SHORT = TrainConfig(max_steps=12, log_every=3, validate_every=5, checkpoint_every=4, average=2)


def test_no_checkpoint_is_ahead_of_the_metrics_that_are_on_the_disk(tmp_path: Path, monkeypatch) -> None:
    """Else a run that goes on from it would never log again what a full disk did not take."""
    saved_at = []

    def flush() -> None:
        saved_at.append(newest_checkpoint(tmp_path / "checkpoints"))
        if len(saved_at) == 2:
            raise UserError("the disk is full")

    usual = Told.reports
    monkeypatch.setattr(Told, "reports", lambda told: dataclasses.replace(usual(told), flush=flush))
    with pytest.raises(UserError, match="the disk is full"):
        start(tmp_path, SHORT)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_00000004"]
    assert len(saved_at) == 2 and saved_at[0] is None

    monkeypatch.undo()
    told, state, _, _ = start(tmp_path, SHORT)
    assert sorted(told.losses()) == [6, 9, 12] and state.step == 12


@pytest.mark.parametrize(("shape", "steps"), [(MODEL, 400), (LSTM, 250)], ids=["transformer", "lstm"])
def test_the_copy_task_reaches_bleu_95(tmp_path: Path, shape: ModelConfig, steps: int) -> None:
    every = 50 if shape is MODEL else 25
    config = TrainConfig(max_steps=steps, log_every=50, validate_every=every, checkpoint_every=steps, average=3)
    # In two micro-batches, which take half of the time of four.
    told, _, _, _ = start(tmp_path, config, shape=shape, batch=dataclasses.replace(BATCH, micro_tokens=256))
    losses = told.losses()
    assert losses[steps] < losses[50]
    weights = average_weights(list_weights(tmp_path / "weights")[-3:])
    assert bleu(shape, weights, CopyPairs(200, seed=99)) > 95


@pytest.mark.parametrize("shape", [MODEL, LSTM], ids=["transformer", "lstm"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path, shape: ModelConfig) -> None:
    class Stop(Exception):
        pass

    whole, _, engine, _ = start(tmp_path / "whole", SHORT, shape=shape)

    calls = []

    def stop_at_second(step: int, path: Path) -> Evaluation:
        calls.append(step)
        if step == 10:
            raise Stop
        return found(1.0, float(step))

    with pytest.raises(Stop):
        start(tmp_path / "broken", SHORT, shape=shape, validate=stop_at_second)
    assert newest_checkpoint(tmp_path / "broken" / "checkpoints").name == "step_00000008"
    resumed, state, again, _ = start(tmp_path / "broken", SHORT, shape=shape)
    assert state.step == 12
    for name, tensor in engine.weights().items():
        assert torch.equal(tensor, again.weights()[name]), name
    rest = {step: loss for step, loss in whole.losses().items() if step > 8}
    assert rest == resumed.losses()
    assert [one["step"] for one in state.validations] == [5, 10, 12]


def test_a_validation_that_others_do_counts_at_the_next_one(tmp_path: Path) -> None:
    log: list[str] = []

    def later(step: int, path: Path):
        assert load_weights(path)
        log.append(f"begin {step}")

        def wait() -> Evaluation:
            log.append(f"end {step}")
            return found(1.0, 10.0)

        return wait

    told, state, _, _ = start(tmp_path, SHORT, validate=later)
    assert log == ["begin 5", "end 5", "begin 10", "end 10", "begin 12", "end 12"]
    assert told.validated == [5, 10, 12]
    assert [fresh["validation_step"] for fresh in told.progress if "validation_step" in fresh] == [5, 10, 12]
    assert state.pending_validation is None


def test_a_pending_validation_is_begun_again_on_resume(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def lost() -> Evaluation:
        raise Stop

    with pytest.raises(Stop):  # at step 10, when the result of step 5 is waited for
        start(tmp_path, SHORT, validate=lambda step, path: lost)
    assert load_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))[1]["pending_validation"] == 5
    _told, state, _, _ = start(tmp_path, SHORT)
    assert [one["step"] for one in state.validations] == [5, 10, 12]


def test_a_killed_run_finds_the_snapshots_that_its_checkpoint_needs(tmp_path: Path) -> None:
    """Snapshots of steps 6 to 14 came after the checkpoint, whose validation of step 6 is begun again, and whose last
    snapshots, of steps 4 and 6, are the final model's."""

    class Killed(Exception):
        pass

    def of_file(step: int, path: Path) -> Callable[[], Evaluation]:
        mean = sum(float(tensor.double().mean()) for tensor in load_weights(path).values())
        return lambda: found(1.0, step + mean / 1e6)

    config = TrainConfig(max_steps=8, validate_every=2, checkpoint_every=7, keep_checkpoints=1, average=3)
    whole = start(tmp_path / "whole", config, validate=of_file)[1]
    longer = dataclasses.replace(config, max_steps=20)

    def until_14(step: int, path: Path) -> Callable[[], Evaluation]:
        if step == 14:
            raise Killed
        return of_file(step, path)

    with pytest.raises(Killed):
        start(tmp_path / "killed", longer, validate=until_14)
    assert load_checkpoint(newest_checkpoint(tmp_path / "killed" / "checkpoints"))[1]["pending_validation"] == 6
    state = start(tmp_path / "killed", config, validate=of_file)[1]
    assert state.validations == whole.validations
    means = [average_weights(list_weights(tmp_path / run / "weights")[-3:]) for run in ("whole", "killed")]
    assert all(torch.equal(tensor, means[1][name]) for name, tensor in means[0].items())


def test_patience_stops_and_keeps_the_best(tmp_path: Path) -> None:
    scores = {2: 10.0, 4: 30.0, 6: 20.0, 8: 25.0, 10: 28.0}
    config = TrainConfig(
        max_steps=50, log_every=2, validate_every=2, checkpoint_every=50, patience=2, average=1, average_of=Average.best
    )
    _, state, _, reason = start(tmp_path, config, validate=lambda step, path: found(1.0, scores[step]))
    assert reason == "patience" and state.step == 8
    assert BLEU.best(state.validations)["step"] == 4
    assert {path.name for path in list_weights(tmp_path / "weights")} == {"step_00000004", "step_00000008"}
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step_00000008"


def test_training_ends_at_the_report_after_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    ticking = SimpleNamespace(monotonic=lambda: float(next(clock)))  # a step takes a second
    monkeypatch.setattr(
        "transloom.pipeline.train.meter.time", ticking
    )  # the meter's alone: others look at the time, too
    config = TrainConfig(max_minutes=5 / 60, log_every=2, validate_every=4, checkpoint_every=50)
    told, state, _, reason = start(tmp_path, config)
    assert (reason, state.step, state.seconds) == ("max_minutes", 6, 6.0)
    assert [one["step"] for one in state.validations] == [4, 6]
    assert told.metrics["train/seconds", 4] == 4.0
    _, state, _, reason = start(tmp_path, config)
    assert (reason, state.step) == ("max_minutes", 6)  # the time of all attempts counts
    _, state, _, reason = start(tmp_path, dataclasses.replace(config, max_minutes=7 / 60))
    assert (reason, state.step, state.seconds) == ("max_minutes", 8, 8.0)


def test_a_run_whose_time_is_up_when_it_is_resumed_ends_with_a_snapshot(tmp_path: Path) -> None:
    """A kill in the last validation: the seconds were logged, and the newest checkpoint is of before."""
    config = dataclasses.replace(SHORT, max_minutes=1 / 60, max_steps=100)
    _, state, _, reason = start(tmp_path, config, fresh=TrainState(seconds=5.0))
    assert reason == "max_minutes"
    assert [one["step"] for one in state.validations] == [state.step] == checkpoints(tmp_path)
    assert state.step == config.log_every


class Broken:
    """An engine whose every step meets a gradient that is no number."""

    def __init__(self, engine: Engine) -> None:
        self.device = engine.device
        self.forward_backward = engine.forward_backward

    def step(self, learning_rate: float) -> StepResult:
        return StepResult(math.inf, True, 1.0)


def test_a_training_that_diverges_stops_and_says_where(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, max_skipped=3)
    with pytest.raises(UserError, match=r"3 steps in a row.*step 3.*learning rate"):
        start(tmp_path, config, wrap=Broken)


class Skipping:
    """An engine that skips some of its steps, by number."""

    def __init__(self, engine: Engine, steps: range) -> None:
        self._engine, self._steps, self._step = engine, steps, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, learning_rate: float) -> StepResult:
        self._step += 1
        return StepResult(math.inf, True, 1.0) if self._step in self._steps else self._engine.step(learning_rate)


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


def test_a_training_that_diverges_keeps_its_good_checkpoints(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, max_steps=40, max_skipped=20, keep_checkpoints=1)
    with pytest.raises(UserError, match="20 steps in a row"):
        start(tmp_path, config, wrap=lambda engine: Skipping(engine, range(6, 40)))
    assert checkpoints(tmp_path) == [4]


def test_a_checkpoint_that_falls_among_skipped_steps_is_made_after_them(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, max_steps=11, keep_checkpoints=9)
    start(tmp_path, config, wrap=lambda engine: Skipping(engine, range(4, 6)))
    assert checkpoints(tmp_path) == [6, 8, 11]


def test_a_run_that_is_stopped_while_it_skips_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, keep_checkpoints=1)
    asked = iter([False] * 6 + [True])
    reason = start(tmp_path, config, wrap=lambda engine: Skipping(engine, range(6, 40)), stop=lambda: next(asked))[3]
    assert reason == "stopped" and checkpoints(tmp_path) == [4, 7]


@pytest.mark.parametrize("part", ["weights/", "exp_avg/", "exp_avg_sq/"])
def test_a_state_with_what_is_no_number_is_no_checkpoint(tmp_path: Path, part: str) -> None:
    class Spoilt(Skipping):
        def state(self) -> EngineState:
            found = self._engine.state()
            if self._step == 8:
                next(tensor for name, tensor in found.tensors.items() if name.startswith(part)).view(-1)[1] = math.inf
            return found

    config = dataclasses.replace(SHORT, keep_checkpoints=1)
    with pytest.raises(UserError, match=f"^at step 8 {part}"):
        start(tmp_path, config, wrap=lambda engine: Spoilt(engine, range(0)))
    assert checkpoints(tmp_path) == [4]
    config = dataclasses.replace(config, on_divergence=OnDivergence.rollback)
    _, state, _, reason = start(tmp_path / "back", config, wrap=lambda engine: Spoilt(engine, range(0)))
    assert (reason, state.reordered) == ("max_steps", [[0, 4]])


BACK = dataclasses.replace(SHORT, max_skipped=3, on_divergence=OnDivergence.rollback)


def test_the_batches_of_skipped_steps_are_kept(tmp_path: Path) -> None:
    pairs = CopyPairs(2000, 0)
    config = dataclasses.replace(SHORT, max_skipped=7)
    with pytest.raises(UserError, match=r"skipped/00_step_00000012\.json"):
        start(
            tmp_path,
            config,
            wrap=lambda engine: Skipping(engine, range(6, 40)),
            pairs=pairs,
            text=lambda column, ids: words(list(ids)[:-1]),
        )
    files = sorted((tmp_path / "skipped").iterdir())
    assert [file.name for file in files] == [f"00_step_{step:08d}.json" for step in range(8, 13)]
    straight = plan(pairs, 8)
    kept = read_json(files[0])
    assert (kept["step"], kept["epoch"], kept["index"]) == (8, 0, 7)
    assert [one["rows"] for one in kept["micro_batches"]] == [rows.tolist() for rows in straight[7].rows]
    for one in kept["micro_batches"]:
        assert 0 < one["loss"] < 1000
        for row, pair in zip(one["rows"], one["examples"], strict=True):
            ids = pairs.get("source", row).tolist()
            sentence = {"ids": ids, "text": words(ids[:-1])}
            assert pair == {"row": row, "source": sentence, "target": sentence}


class Poisoned(Skipping):
    """An engine whose loss and gradient are no numbers in one micro-batch of some of its steps, by number."""

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        is_bad = last and self._step + 1 in self._steps and rank() == world_size() - 1
        loss = self._engine.forward_backward(batch, scale=math.nan if is_bad else scale, last=last)
        return LossSum(loss.total * math.nan, loss.num_tokens) if is_bad else loss

    def step(self, learning_rate: float) -> StepResult:
        self._step += 1
        return self._engine.step(learning_rate)


def test_of_a_skipped_step_the_micro_batch_without_a_loss_is_kept_and_weights_stay(tmp_path: Path) -> None:
    before: list[dict[str, torch.Tensor]] = []

    class Watched(Poisoned):
        def step(self, learning_rate: float) -> StepResult:
            before.append(self._engine.weights())
            return super().step(learning_rate)

    start(tmp_path, SHORT, wrap=lambda engine: Watched(engine, range(8, 10)))
    assert [all(torch.equal(one[n], other[n]) for n in one) for one, other in itertools.pairwise(before)] == [
        step in (8, 9) for step in range(1, 12)
    ]
    kept = read_json(tmp_path / "skipped" / "00_step_00000008.json")
    assert [one["loss"] == "nan" for one in kept["micro_batches"]] == [False, False, False, True]
    assert ["examples" in one for one in kept["micro_batches"]] == [False, False, False, True]


def points_of(folder: Path) -> list[tuple[str, int]]:
    return [(point.key, point.step) for point in read_points(folder)]


def test_a_training_that_diverges_goes_back_and_on_in_another_order(tmp_path: Path) -> None:
    tracker = SpoolTracker(tmp_path)
    told = Told()
    reports = dataclasses.replace(told.reports(), metrics=tracker.log_metrics)
    _, state, _, reason = start(tmp_path, BACK, wrap=lambda engine: Poisoned(engine, range(6, 9)), reports=reports)
    tracker.close()
    assert (reason, state.step, state.reordered) == ("max_steps", 12, [[0, 4]])
    assert {"step": 4, "rollbacks": 1, "rolled_back_from": 8} in told.progress
    points = points_of(tmp_path)
    assert len(points) == len(set(points))  # none twice, though two steps were reported twice
    assert {step for key, step in points if key == "train/seconds"} == {3, 6, 9, 12}
    rollbacks = {point.step: point.value for point in read_points(tmp_path) if point.key == "train/rollbacks"}
    assert rollbacks == {3: 0, 6: 0, 8: 1, 9: 1, 12: 1}
    assert [one["step"] for one in state.validations] == [5, 10, 12]
    assert checkpoints(tmp_path) == [8, 12]


def test_a_training_that_goes_back_uses_every_pair_once_an_epoch(tmp_path: Path) -> None:
    pairs = CopyPairs(600, 0)
    straight = plan(pairs, 40)
    length = next(i for i, step in enumerate(straight) if step.epoch == 1)
    back = plan(pairs, 40, reordered=[[0, 4]])
    assert [one.tolist() for step in back[:4] for one in step.rows] == [
        one.tolist() for step in straight[:4] for one in step.rows
    ]
    assert [one.tolist() for one in back[4].rows] != [one.tolist() for one in straight[4].rows]
    assert sorted(row for step in back[:length] for one in step.rows for row in one) == list(range(600))


def test_a_training_that_went_back_and_was_killed_equals_one_that_only_went_back(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def diverging(engine: Engine) -> Any:
        return Poisoned(engine, range(6, 9))

    whole, _, engine, _ = start(tmp_path / "whole", BACK, wrap=diverging)
    calls: list[int] = []

    def killed(step: int, path: Path) -> Evaluation:
        calls.append(step)
        if len(calls) == 2:
            raise Stop
        return found(1.0, float(step))

    with pytest.raises(Stop):
        start(tmp_path / "broken", BACK, wrap=diverging, validate=killed)
    assert calls == [5, 5] and checkpoints(tmp_path / "broken") == [0, 4]
    rest, state, again, _ = start(tmp_path / "broken", SHORT)
    assert state.reordered == [[0, 4]]
    expected = engine.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.weights().items())
    assert {s: v for s, v in whole.losses().items() if s > 8} == {s: v for s, v in rest.losses().items() if s > 8}
    straight = start(tmp_path / "straight", SHORT)[2].weights()
    assert any((straight[name] != tensor).any() for name, tensor in expected.items())  # the order was another one


def test_it_goes_back_no_more_often_than_it_may_and_further_each_time(tmp_path: Path) -> None:
    config = dataclasses.replace(BACK, max_rollbacks=2, max_steps=40)
    told = Told()
    with pytest.raises(UserError, match=r"train\.max_rollbacks"):
        start(tmp_path, config, wrap=lambda engine: Poisoned(engine, range(10, 99)), reports=told.reports())
    assert [(one["rolled_back_from"], one["step"]) for one in told.progress if "rolled_back_from" in one] == [
        (12, 8),
        (11, 4),
    ]
    assert checkpoints(tmp_path) == [4]


def test_without_any_checkpoint_it_goes_back_to_the_beginning(tmp_path: Path) -> None:
    config = dataclasses.replace(BACK, checkpoint_every=50)
    _, state, _, reason = start(tmp_path, config, wrap=lambda engine: Poisoned(engine, range(2, 5)))
    assert (reason, state.step, state.reordered) == ("max_steps", 12, [[0, 0]])


def test_a_checkpoint_from_amid_skipped_steps_is_not_gone_back_to(tmp_path: Path) -> None:
    asked = iter([False] * 6 + [True])
    bad = lambda engine: Poisoned(engine, range(6, 9))  # noqa: E731
    assert start(tmp_path, BACK, wrap=bad, stop=lambda: next(asked))[3] == "stopped"
    assert checkpoints(tmp_path)[-1] == 7
    told, state, _, _ = start(tmp_path, BACK, wrap=lambda engine: Poisoned(engine, range(1, 2)))
    assert state.reordered == [[0, 4]]
    assert told.metrics["train/rollbacks", 8] == 1


def test_a_checkpoint_that_is_gone_back_to_still_has_its_best_snapshot(tmp_path: Path) -> None:
    """The snapshot of step 4 is the best again, once step 6 is no longer the run's past."""
    scores = iter([1.0, 10.0, 30.0, 5.0, 5.0, 5.0, 5.0, 5.0])
    config = dataclasses.replace(BACK, validate_every=2, checkpoint_every=5, max_skipped=1, average=1)
    bad = range(9, 10)
    _, state, _, _ = start(
        tmp_path,
        config,
        wrap=lambda engine: Poisoned(engine, bad),
        validate=lambda step, path: found(1.0, next(scores)),
    )
    assert [one["step"] for one in state.validations] == [2, 4, 6, 8, 10, 12] and BLEU.best(state.validations)[
        "step"
    ] == 4
    assert load_weights(tmp_path / "weights" / "step_00000004")


class Leaping(Skipping):
    """An engine whose loss is four times too high in some of its steps."""

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        loss = self._engine.forward_backward(batch, scale=scale, last=last)
        return LossSum(loss.total * (4.0 if self._step + 1 in self._steps else 1.0), loss.num_tokens)

    def step(self, learning_rate: float) -> StepResult:
        self._step += 1
        return self._engine.step(learning_rate)


def test_a_resumed_training_follows_the_curve_of_the_new_total(tmp_path: Path) -> None:
    schedule = ScheduleConfig(ScheduleName.linear, warmup_steps=2, peak_learning_rate=1e-3, final_ratio=0.0)
    rates: list[float] = []

    class Watched(Skipping):
        def step(self, learning_rate: float) -> StepResult:
            rates.append(learning_rate)
            return self._engine.step(learning_rate)

    for max_steps in (4, 10):
        config = dataclasses.replace(SHORT, max_steps=max_steps)
        start(tmp_path, config, wrap=lambda engine: Watched(engine, range(0)), schedule=schedule)
    shares = [1 / 2, 1, 1 / 2, 0, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert rates == pytest.approx([1e-3 * share for share in shares], rel=1e-12)


def test_a_loss_that_leaps_is_a_divergence_where_that_is_asked_for(tmp_path: Path) -> None:
    config = dataclasses.replace(BACK, max_steps=32, checkpoint_every=10)

    def leaping(engine: Engine) -> Any:
        return Leaping(engine, range(26, 27))

    assert start(tmp_path / "off", config, wrap=leaping)[1].reordered == []
    config = dataclasses.replace(config, spike_factor=2.0)
    assert start(tmp_path / "calm", config)[1].reordered == []
    _, state, _, _ = start(tmp_path / "back", config, wrap=leaping)
    assert state.reordered == [[0, 20]] and len(state.recent_losses) == 32
    stopping = dataclasses.replace(config, on_divergence=OnDivergence.stop)
    with pytest.raises(UserError, match=r"^step 26 .*train\.spike_factor=2"):
        start(tmp_path / "stop", stopping, wrap=leaping)


def go_back_on_every_rank(folder: Path) -> list[Any]:
    """What each engine comes to; the last of the ranks alone has losses that are no numbers."""
    found = []
    for name, stage in ((EngineName.torch, 0), (EngineName.deepspeed, 1), (EngineName.deepspeed, 3)):
        own = folder / f"{name.value}{stage}"
        told, state, engine, reason = start(
            own, BACK, wrap=lambda engine: Poisoned(engine, range(6, 9)), engine=EngineConfig(name, stage)
        )
        kept = read_json(own / "skipped" / "00_step_00000008.json")["micro_batches"]
        bad = [(one["rank"], one["micro_batch"]) for one in kept if one["loss"] == "nan"]
        found.append((reason, state.step, state.reordered, bad, told.losses(), engine.weights()))
    return found


def test_all_ranks_go_back_together_with_every_engine(tmp_path: Path) -> None:
    first, second = run_ranks(go_back_on_every_rank, 2, tmp_path)
    alone = start(tmp_path / "alone", BACK, wrap=lambda engine: Poisoned(engine, range(6, 9)))[0].losses()
    for one, other in zip(first, second, strict=True):
        assert one[:5] == other[:5]
        assert one[:4] == ("max_steps", 12, [[0, 4]], [(1, 3)])
        assert one[4] == pytest.approx(alone, rel=1e-3)


def test_metrics_count_real_tokens(tmp_path: Path) -> None:
    told, state, _, _ = start(tmp_path, SHORT)
    assert state.tokens["target"] == told.metrics["train/target_tokens", 12]
    assert 0 < told.metrics["train/padding_share", 12] < 0.4  # of batches so small that filler weighs
    assert told.metrics["train/learning_rate", 6] == pytest.approx(5e-3 * 60**0.5 * 6 * 60**-1.5)
    first = told.losses()[3]
    assert math.log(VOCAB) * 0.7 < first < math.log(VOCAB) * 2


@pytest.mark.parametrize(
    "field",
    [
        "max_steps",
        "max_minutes",
        "log_every",
        "validate_every",
        "average",
        "patience",
        "label_smoothing",
        "max_rollbacks",
        "spike_factor",
    ],
)
def test_impossible_settings_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        TrainConfig(**{field: -1})


def test_asked_to_stop_it_saves_the_step_and_goes_on_from_there(tmp_path: Path) -> None:
    whole, _, engine, _ = start(tmp_path / "whole", SHORT)
    asked = iter([False] * 6 + [True])
    told, state, _, reason = start(tmp_path / "stopped", SHORT, stop=lambda: next(asked))
    assert (reason, state.step) == ("stopped", 7)
    newest = newest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert newest is not None and newest.name == "step_00000007"
    rest, _, resumed, reason = start(tmp_path / "stopped", SHORT)
    assert reason == "max_steps"
    assert told.metrics.keys() | rest.metrics.keys() == whole.metrics.keys()
    expected = engine.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights().items())


def test_a_run_that_has_ended_is_trained_on_as_if_it_had_not(tmp_path: Path) -> None:
    longer = dataclasses.replace(SHORT, max_steps=18)
    whole, _, engine, _ = start(tmp_path / "whole", longer)
    assert start(tmp_path / "ended", SHORT)[3] == "max_steps"
    rest, state, extended, _ = start(tmp_path / "ended", longer)
    assert state.step == 18
    assert sorted(whole.losses()) == [3, 6, 9, 12, 15, 18]
    assert rest.losses() == {step: loss for step, loss in whole.losses().items() if step > 12}
    expected = engine.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in extended.weights().items())


def test_a_run_that_ends_anyway_is_not_stopped(tmp_path: Path) -> None:
    asked = itertools.chain([False] * 11, itertools.repeat(True))
    assert start(tmp_path, SHORT, stop=lambda: next(asked))[3] == "max_steps"
