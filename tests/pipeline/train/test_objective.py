"""R-drop: two passes of one batch, whose predictions are drawn together (Liang et al. 2021)."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional

from transloom.jobs.config.compose import load_config
from transloom.model.build import build_model
from transloom.model.config import TransformerConfig
from transloom.pipeline.data.pairs import collate_pairs
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.objective import TranslationObjective

SHAPE = TransformerConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1, dropout=0.3)


class Pairs:
    """Two pairs, as `Examples`."""

    ids: ClassVar = {"source": [[5, 6, 7, 3], [4, 3]], "target": [[8, 9, 3], [6, 7, 8, 9, 3]]}

    def get(self, column: str, row: int) -> np.ndarray:
        return np.array(self.ids[column][row])


@pytest.fixture
def setting() -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(model=build_model(SHAPE, 20), batch=collate_pairs(Pairs(), [0, 1]))


def loss_of(setting: SimpleNamespace, alpha: float, training: bool = True) -> float:
    objective = TranslationObjective(setting.model, 0.1, alpha).train(training)
    torch.manual_seed(7)
    return objective(setting.batch).total.item()


def test_the_loss_is_half_of_the_papers(setting: SimpleNamespace) -> None:
    alpha, batch, model = 3.0, setting.batch, setting.model.train()
    torch.manual_seed(7)
    weight, count = model.output_weight, len(batch.labels)
    logits = [
        functional.linear(model(batch.source, batch.source_layout, batch.target, batch.target_layout), weight)[:count]
        for _ in range(2)
    ]
    nll = sum(functional.cross_entropy(z, batch.labels, reduction="sum", label_smoothing=0.1) for z in logits)
    p, q = (z.log_softmax(-1) for z in logits)
    apart = sum((a.exp() * (a - b)).sum() for a, b in ((p, q), (q, p)))
    assert apart > 0.1  # the passes drop other elements
    assert loss_of(setting, alpha) == pytest.approx(float(nll + alpha / 2 * apart) / 2, rel=1e-5)


def test_without_r_drop_or_training_there_is_one_pass(setting: SimpleNamespace) -> None:
    calls = []
    setting.model.register_forward_hook(lambda *_: calls.append(1))
    loss_of(setting, 0.0), loss_of(setting, 2.0, training=False)
    assert len(calls) == 2
    loss_of(setting, 2.0)
    assert len(calls) == 4
    assert loss_of(setting, 2.0, training=False) == loss_of(setting, 0.0, training=False)


@pytest.mark.parametrize(
    "words",
    [
        ["train.r_drop=-1"],
        ["train.r_drop=2", "model.dropout=0"],
        ["train.r_drop=2", "experiment=language_model/demo"],
    ],
)
def test_r_drop_that_means_nothing_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^train\.r_drop: "):
        load_config(words)
    assert load_config(["train.r_drop=5"]).train.passes == 2
