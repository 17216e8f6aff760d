"""The demo of `make demo` on one device in one process: the phrasebook, the training loop, BLEU by beam search."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from model.build import build_model
from pipeline.data.lines import read_lines
from pipeline.data.prepare import Prepared, prepare
from pipeline.data.shards import open_shards
from pipeline.data.tokenizer import Tokenizer
from pipeline.evaluate.scores import score
from pipeline.evaluate.tokenizers import tokenizer_for
from pipeline.evaluate.validate import Validation, validate
from pipeline.generate.translator import Translator, save_model
from pipeline.gpu_check.outcome import Outcome, Target
from pipeline.gpu_check.settings import Demo
from pipeline.train.checkpoint import average_weights, list_weights, load_weights
from pipeline.train.engine import EngineConfig, EngineName, make_engine
from pipeline.train.loop import Reports, TrainState, train
from pipeline.train.objective import TranslationObjective
from pipeline.train.optimizer import TORCH_DTYPES

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
    snapshots = list_weights(folder / "weights")[-demo.train.average :]
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
    speed = state.target_tokens / state.seconds
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
    tokenizer = Tokenizer.load(prepared.tokenizer.folder)
    torch.manual_seed(demo.seed)
    model = build_model(demo.model, tokenizer.vocab_size)
    objective = TranslationObjective(model, demo.train.label_smoothing).train()
    engine = make_engine(objective, demo.optimizer, demo.precision, EngineConfig(EngineName.torch), device)
    state = TrainState()
    train(
        demo.train,
        demo.batch,
        demo.schedule,
        model=model,
        engine=engine,
        pairs=open_shards(prepared.shards.folder, "train"),
        seed=demo.seed,
        state=state,
        folder=folder,
        about={},
        validate=_validation(demo, prepared, tokenizer, device),
        reports=Reports(*[lambda *_: None] * 3),
    )
    return state


def _validation(
    demo: Demo, prepared: Prepared, tokenizer: Tokenizer, device: torch.device
) -> Callable[[int, Path], Validation]:
    pairs = open_shards(prepared.shards.folder, "validation")
    references = [line.decode() for line in read_lines(prepared.corpus.folder / "validation.target")]
    beam = replace(demo.decode, beam=demo.train.validation_beam)

    def validate_snapshot(step: int, snapshot: Path) -> Validation:
        model = build_model(demo.model, tokenizer.vocab_size)
        model.load_state_dict(load_weights(snapshot))
        model.to(device, TORCH_DTYPES[demo.precision.dtype]).eval()
        tokenize = tokenizer_for(demo.corpus.target_language)
        return validate(model, tokenizer, pairs, references, demo.batch, beam, tokenize)

    return validate_snapshot
