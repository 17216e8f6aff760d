"""A run's trained model with the data that it was trained on."""

import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.jobs.runs.model import called, computing_device, find_model, run_of
from transloom.jobs.runs.workspace import Run, stage_folder
from transloom.pipeline.attention_maps import WORD_START
from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST
from transloom.pipeline.model_folder import read_model
from transloom.pipeline.run_folder import STAGES
from transloom.pipeline.tasks.build import make_task
from transloom.pipeline.tasks.task import Task


@dataclass(frozen=True)
class Trained:
    """A run, its task, and its model in fp32 and evaluation mode."""

    run: Run
    task: Task
    model: Any

    def untrained(self) -> Any:
        """The same model with the random weights that the run's seed draws."""
        torch.manual_seed(self.run.config.seed)
        return self.task.model().to(computing_device()[0]).eval()

    def tokenizer(self) -> Any:
        """The tokenizer of the task's kind."""
        folder = stage_folder(self.run.folder, "tokenizer")
        return Tokenizer.load(folder) if self.run.config.languages else load_text_tokenizer(folder)

    def punctuation(self) -> np.ndarray:
        """(V,) whether a token is punctuation."""
        tokenizer = self.tokenizer()
        if self.run.config.languages:
            texts = [piece.replace(WORD_START, " ") for piece in tokenizer.pieces()]
        else:
            texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        marks = np.zeros(self.model.vocab_size, bool)
        marks[: len(texts)] = [is_punctuation(text) for text in texts]
        return marks


def open_trained(name: str, root: Path) -> Trained:
    """
    Raises:
        UserError: there is no such run or model, it is a model without its run, or the run's prepared data is gone.
    """
    folder = find_model(name, root)
    run = run_of(folder)
    if run is None:
        raise UserError(f"{name}: is not in a run's folder, and what it was trained on is not known; name a run")
    for prepared in (stage_folder(run.folder, stage) for stage in STAGES):
        if not (prepared / MANIFEST).exists():
            raise UserError(
                f"{name}: its prepared data is gone ({prepared}); make it again with transloom prepare "
                f"resume={called(run)}"
            )
    task = make_task(run.config, partial(stage_folder, run.folder))
    model = task.model()
    model.load_state_dict(read_model(folder).weights)
    return Trained(run, task, model.to(computing_device()[0], torch.float32).eval())


def is_punctuation(text: str) -> bool:
    """Whether a text is punctuation alone, but for spaces."""
    marks = text.strip()
    return bool(marks) and all(unicodedata.category(character).startswith("P") for character in marks)
