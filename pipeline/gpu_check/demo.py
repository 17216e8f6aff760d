"""The demo of `make demo` on one device in one process: the phrasebook, the training loop, BLEU by beam search."""

import time
from pathlib import Path

import torch

from transloom.model.flops import training_flops
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.prepare import Prepared, prepare
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.tokenizers import tokenizer_for
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.gpu_check.outcome import Outcome, Target
from transloom.pipeline.gpu_check.settings import Demo
from transloom.pipeline.model_folder import save_model
from transloom.pipeline.run_folder import WEIGHTS_FOLDER
from transloom.pipeline.tasks.task import Evaluation
from transloom.pipeline.tasks.translation import translation
from transloom.pipeline.train.checkpoint import average_weights, list_weights, load_weights
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.loop import train
from transloom.pipeline.train.optimizer import TORCH_DTYPES
from transloom.pipeline.train.schedule import learning_rate
from transloom.pipeline.train.session import Reports, Session, TrainState

MODEL, TEST = "model", "test"  # what is left in the demo's folder: the model's, and the test set's .source and .target


def run_demo(demo: Demo, device: torch.device, folder: Path) -> Outcome:
    """Prepares, trains, averages, translates and scores.

    Args:
        folder: for everything; afterwards it has the model and the test set.
    """
    started_at = time.monotonic()
    prepared = prepare(demo.corpus, demo.clean, demo.tokenizer, folder)
    prepared_at = time.monotonic()
    state = _train(demo, prepared, device, folder)
    trained_at = time.monotonic()
    snapshots = list_weights(folder / WEIGHTS_FOLDER)[-demo.train.average :]
    about = {
        "source_language": demo.corpus.source_language,
        "target_language": demo.corpus.target_language,
        "precision": demo.precision.dtype.value,
    }
    save_model(folder / MODEL, demo.model, average_weights(snapshots), prepared.tokenizer.folder, about)
    for side in ("source", "target"):
        lines = (prepared.corpus.folder / f"test.{side}").read_bytes()
        (folder / f"{TEST}.{side}").write_bytes(lines)
    sources, references = read_test_set(folder)
    hypotheses = Translator.load(folder / MODEL, device).translate(sources, demo.decode)
    bleu = score(hypotheses, references, tokenize=tokenizer_for(demo.corpus.target_language))["bleu"]
    seconds = {
        "prepare": prepared_at - started_at,
        "train": trained_at - prepared_at,
        "steps": state.seconds,
        "evaluate": time.monotonic() - trained_at,
    }
    speed = state.tokens["target"] / state.seconds
    figures = {
        "bleu": bleu.value,
        "signature": bleu.signature,
        "steps": state.step,
        "validations": state.validations,
        "target_tokens_per_second": speed,
        "seconds": seconds,
        "samples": [list(one) for one in zip(sources[:3], references[:3], hypotheses[:3], strict=True)],
    }
    summary = f"BLEU {bleu.value:.2f} after {state.step:,} steps at {speed:,.0f} target tokens/s"
    targets = [Target("test BLEU", bleu.value, demo.bleu)] if demo.bleu is not None else []
    return Outcome(summary, figures, targets)


def read_test_set(folder: Path) -> tuple[list[str], list[str]]:
    """The source and target lines of the test set in the demo's folder."""
    sources, references = (
        [line.decode() for line in read_lines(folder / f"{TEST}.{side}")] for side in ("source", "target")
    )
    return sources, references


def _train(demo: Demo, prepared: Prepared, device: torch.device, folder: Path) -> TrainState:
    """What a worker of a run does, without its spool and its progress file."""
    task = translation(
        lambda stage: getattr(prepared, stage).folder,
        model=demo.model,
        batch=demo.batch,
        label_smoothing=demo.train.label_smoothing,
        search=demo.decode,
        validation_beam=demo.train.validation_beam,
        tokenize=tokenizer_for(demo.corpus.target_language),
    )
    torch.manual_seed(demo.seed)
    model = task.model()
    objective = task.objective(model).train()
    engine = make_engine(objective, demo.optimizer, demo.precision, EngineConfig(EngineName.torch), device)

    def validate_snapshot(step: int, snapshot: Path) -> Evaluation:
        trained = task.model()
        trained.load_state_dict(load_weights(snapshot))
        return task.validate(trained.to(device, TORCH_DTYPES[demo.precision.dtype]).eval())

    session = Session(
        demo.train,
        engine=engine,
        state=TrainState(),
        folder=folder,
        metadata={},
        selects=task.selects,
        validate=validate_snapshot,
        reports=Reports(*[lambda *_: None] * 3),
        flops=lambda tokens: training_flops(demo.model, model.vocab_size, *tokens.values()),
    )
    total, width = demo.train.max_steps, demo.model.d_model
    train(session, task, demo.batch, demo.seed, lambda step: learning_rate(demo.schedule, step, total, width))
    return session.state
