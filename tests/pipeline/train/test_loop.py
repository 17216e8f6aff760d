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

from model.build import ModelConfig, build_model
from model.config import Norm, RecurrentConfig, TransformerConfig
from pipeline.data.batches import BatchConfig
from pipeline.data.tokenizer import EOS_ID
from pipeline.decode import BeamConfig
from pipeline.errors import UserError
from pipeline.evaluate.scores import score
from pipeline.train.checkpoint import average_weights, list_weights, load_checkpoint, load_weights, newest_checkpoint
from pipeline.train.engine import Engine, EngineConfig, EngineName, make_engine
from pipeline.train.loop import Average, Reports, TrainConfig, TrainState, train
from pipeline.train.objective import TranslationObjective
from pipeline.train.optimizer import EngineState, OptimizerConfig, Precision, PrecisionConfig, StepResult
from pipeline.train.schedule import ScheduleConfig, ScheduleName
from pipeline.translate import translate_tokens

VOCAB = 24
MODEL = TransformerConfig(
    d_model=32, d_ff=64, num_heads=4, encoder_layers=1, decoder_layers=1, dropout=0.1, norm=Norm.pre, max_positions=64
)
LSTM = RecurrentConfig(d_model=64, encoder_layers=2, decoder_layers=2, dropout=0.0)
BATCH = BatchConfig(tokens=512, micro_tokens=128)
SCHEDULE = ScheduleConfig(name=ScheduleName.inverse_sqrt, warmup_steps=60, peak_learning_rate=5e-3)


class CopyTask:
    """Sentences of 3 to 8 of 20 words, to be repeated."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.sentences = [
            np.append(random.integers(4, VOCAB, random.integers(3, 9)), EOS_ID).astype(np.uint16) for _ in range(count)
        ]
        self.source_lengths = self.target_lengths = np.array([len(one) for one in self.sentences], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.sentences)

    def source(self, index: int) -> np.ndarray:
        return self.sentences[index]

    target = source


@dataclasses.dataclass
class Found:
    loss: float
    bleu: float
    chrf: float = 0.0


@dataclasses.dataclass
class Told:
    """What the loop reported."""

    metrics: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)
    validated: list[int] = dataclasses.field(default_factory=list)

    def reports(self) -> Reports:
        def take(metrics: Mapping[str, float], step: int) -> None:
            self.metrics |= {(name, step): value for name, value in metrics.items()}

        return Reports(take, lambda step, _: self.validated.append(step), lambda _: None)

    def losses(self) -> dict[int, float]:
        return {step: value for (name, step), value in self.metrics.items() if name == "train/loss"}


def words(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def bleu(shape: ModelConfig, weights: Mapping[str, torch.Tensor], pairs: CopyTask) -> float:
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
    batch: BatchConfig = BATCH,
    **changes: Any,
) -> tuple[Told, TrainState, Engine, str]:
    """Trains as a worker does: from the newest checkpoint, if there is one."""
    torch.manual_seed(1)
    model = build_model(shape, VOCAB)
    state, initial = fresh or TrainState(), None
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        initial, saved = load_checkpoint(newest)
        state = TrainState(**saved)
    made = make_engine(
        TranslationObjective(model, config.label_smoothing).train(),
        OptimizerConfig(),
        PrecisionConfig(dtype=Precision.fp32),
        EngineConfig(name=EngineName.torch),
        torch.device("cpu"),
        initial,
    )
    told = Told()
    arguments: dict[str, Any] = {"pairs": CopyTask(2000, 0), "validate": lambda step, path: Found(1.0, float(step))}
    reason = train(
        config,
        batch,
        SCHEDULE,
        model=model,
        engine=wrap(made),
        seed=3,
        state=state,
        folder=folder,
        about={},
        reports=told.reports(),
        **arguments | changes,
    )
    return told, state, made, reason


SHORT = TrainConfig(max_steps=12, log_every=3, validate_every=5, checkpoint_every=4, average=2)


@pytest.mark.parametrize("shape", [MODEL, LSTM], ids=["transformer", "lstm"])
def test_the_copy_task_reaches_bleu_95(tmp_path: Path, shape: ModelConfig) -> None:
    config = TrainConfig(max_steps=400, log_every=50, validate_every=50, checkpoint_every=400, average=3)
    # In two micro-batches, which take half of the time of four.
    told, _, _, _ = start(tmp_path, config, shape=shape, batch=dataclasses.replace(BATCH, micro_tokens=256))
    losses = told.losses()
    assert losses[400] < losses[50]
    weights = average_weights(list_weights(tmp_path / "weights")[-3:])
    assert bleu(shape, weights, CopyTask(200, seed=99)) > 95


@pytest.mark.parametrize("shape", [MODEL, LSTM], ids=["transformer", "lstm"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path, shape: ModelConfig) -> None:
    class Stop(Exception):
        pass

    whole, _, engine, _ = start(tmp_path / "whole", SHORT, shape=shape)

    calls = []

    def stop_at_second(step: int, path: Path) -> Found:
        calls.append(step)
        if step == 10:
            raise Stop
        return Found(1.0, float(step))

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

        def wait() -> Found:
            log.append(f"end {step}")
            return Found(1.0, 10.0)

        return wait

    told, state, _, _ = start(tmp_path, SHORT, validate=later)
    assert log == ["begin 5", "end 5", "begin 10", "end 10", "begin 12", "end 12"]
    assert told.validated == [5, 10, 12]
    assert state.pending_validation is None


def test_a_pending_validation_is_begun_again_on_resume(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def lost() -> Found:
        raise Stop

    with pytest.raises(Stop):  # at step 10, when the result of step 5 is waited for
        start(tmp_path, SHORT, validate=lambda step, path: lost)
    assert load_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))[1]["pending_validation"] == 5
    _told, state, _, _ = start(tmp_path, SHORT)
    assert [one["step"] for one in state.validations] == [5, 10, 12]


def test_patience_stops_and_keeps_the_best(tmp_path: Path) -> None:
    scores = {2: 10.0, 4: 30.0, 6: 20.0, 8: 25.0, 10: 28.0}
    config = TrainConfig(
        max_steps=50, log_every=2, validate_every=2, checkpoint_every=50, patience=2, average=1, average_of=Average.best
    )
    _, state, _, reason = start(tmp_path, config, validate=lambda step, path: Found(1.0, scores[step]))
    assert reason == "patience" and state.step == 8
    assert state.best()["step"] == 4
    assert {path.name for path in list_weights(tmp_path / "weights")} == {"step_00000004", "step_00000008"}
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step_00000008"


def test_training_ends_at_the_report_after_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    ticking = SimpleNamespace(monotonic=lambda: float(next(clock)))  # a step takes a second
    monkeypatch.setattr("pipeline.train.meter.time", ticking)  # the meter's alone: others look at the time, too
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

    with pytest.raises(UserError, match=f"^at step 8 {part}"):
        start(tmp_path, dataclasses.replace(SHORT, keep_checkpoints=1), wrap=lambda engine: Spoilt(engine, range(0)))
    assert checkpoints(tmp_path) == [4]


def test_metrics_count_real_tokens(tmp_path: Path) -> None:
    told, state, _, _ = start(tmp_path, SHORT)
    assert state.target_tokens == told.metrics["train/target_tokens", 12]
    assert 0 < told.metrics["train/padding_share", 12] < 0.4  # of batches so small that filler weighs
    assert told.metrics["train/learning_rate", 6] == pytest.approx(5e-3 * 60**0.5 * 6 * 60**-1.5)
    first = told.losses()[3]
    assert math.log(VOCAB) * 0.7 < first < math.log(VOCAB) * 2


@pytest.mark.parametrize(
    "field", ["max_steps", "max_minutes", "log_every", "validate_every", "average", "patience", "label_smoothing"]
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
