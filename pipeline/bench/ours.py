"""Our training step, as a contender: the engine and the objective of a real run."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from transloom.model.config import DecoderConfig
from transloom.model.kernels.linear import quicker_products, use_products
from transloom.pipeline.bench.task import Task, Trainer, initial_model
from transloom.pipeline.bench.text_steps import text_steps
from transloom.pipeline.data.batches import Step, ahead
from transloom.pipeline.data.pairs import open_pairs, pair_steps
from transloom.pipeline.processor import processor_vendor
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.engine import make_engine
from transloom.pipeline.train.loop import add_gradients
from transloom.pipeline.train.objective import LanguageModelObjective, TranslationObjective
from transloom.pipeline.train.optimizer import Precision


def our_trainer(task: Task, device: torch.device) -> Trainer:
    """What `jobs/training/worker.py` and `pipeline/train/loop.py` do, without reports, validation and checkpoints."""
    model = initial_model(task)
    if task.precision.dtype is Precision.fp32 and device.type == "cpu":
        use_products(quicker_products(model, processor_vendor()))
    is_text = isinstance(task.model, DecoderConfig)
    objective = (LanguageModelObjective if is_text else TranslationObjective)(model, task.label_smoothing).train()
    engine = make_engine(objective, task.optimizer, task.precision, task.engine, device)

    def take(step: Step, rate: float) -> Tensor:
        total = add_gradients(engine, step).sum()
        engine.step(rate)
        return total

    def save(path: Path) -> None:
        weights = {name.removeprefix("model."): tensor for name, tensor in engine.weights().items()}
        if rank() == 0:
            save_file(weights, path)

    if is_text:
        steps = text_steps(task, rank=rank(), world_size=world_size())
    else:
        pairs = open_pairs(Path(task.shards), "train")
        steps = pair_steps(pairs, task.batch, task.seed, rank=rank(), world_size=world_size())
    return Trainer(ahead(steps, device), take, save)
