"""Every row of the paper's table 3 is an experiment, and has the parameters that the paper's dimensions make."""

import dataclasses
from typing import NamedTuple

import pytest
import torch

from transloom.jobs.config.compose import load_config
from transloom.jobs.config.groups import groups
from transloom.model.config import Positions
from transloom.model.transformer import Transformer


class Row(NamedTuple):
    """A row as the paper prints it; what it leaves empty is the base model's. Millions of parameters, 0: not printed.

    d_k stands for d_v too where that is None.
    """

    layers: int = 6
    d_model: int = 512
    d_ff: int = 2048
    h: int = 8
    d_k: int = 64
    d_v: int | None = None
    dropout: float = 0.1
    smoothing: float = 0.1
    steps: int = 100_000
    millions: int = 0
    learned_positions: bool = False


ROWS = {
    "base": Row(millions=65),
    "heads_1": Row(h=1, d_k=512),
    "heads_4": Row(h=4, d_k=128),
    "heads_16": Row(h=16, d_k=32),
    "heads_32": Row(h=32, d_k=16),
    "d_k_16": Row(d_k=16, d_v=64, millions=58),
    "d_k_32": Row(d_k=32, d_v=64, millions=60),
    "layers_2": Row(layers=2, millions=36),
    "layers_4": Row(layers=4, millions=50),
    "layers_8": Row(layers=8, millions=80),
    "d_model_256": Row(d_model=256, d_k=32, millions=28),
    "d_model_1024": Row(d_model=1024, d_k=128, millions=168),
    "d_ff_1024": Row(d_ff=1024, millions=53),
    "d_ff_4096": Row(d_ff=4096, millions=90),
    "dropout_0_0": Row(dropout=0.0),
    "dropout_0_2": Row(dropout=0.2),
    "smoothing_0_0": Row(smoothing=0.0),
    "smoothing_0_2": Row(smoothing=0.2),
    "learned_positions": Row(learned_positions=True),
    "big": Row(d_model=1024, d_ff=4096, h=16, dropout=0.3, steps=300_000, millions=213),
}


def parameters(row: Row, vocabulary: int) -> int:
    """Counted from sections 3.1 to 3.5: weight matrices, then biases, then gains and biases of normalisations."""
    d, keys, values = row.d_model, row.h * row.d_k, row.h * (row.d_v or row.d_k)
    attention = 2 * d * keys + 2 * d * values + 2 * keys + values + d
    feed_forward = 2 * d * row.d_ff + row.d_ff + d
    normalisation = 2 * d
    encoder_layer = attention + feed_forward + 2 * normalisation
    decoder_layer = 2 * attention + feed_forward + 3 * normalisation
    positions = 1024 * d if row.learned_positions else 0
    return vocabulary * d + row.layers * (encoder_layer + decoder_layer) + positions


def test_every_row_is_an_experiment_and_every_experiment_a_row():
    assert {f"paper/table3_{name}" for name in ROWS} == {
        name for name in groups()["experiment"] if name.startswith("paper/")
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_papers_numbers_and_its_parameters(name):
    row, config = ROWS[name], load_config([f"experiment=paper/table3_{name}"])
    model = config.model
    assert (model.encoder_layers, model.decoder_layers) == (row.layers, row.layers)
    assert (model.d_model, model.d_ff, model.num_heads, model.key_width) == (row.d_model, row.d_ff, row.h, row.d_k)
    assert model.value_width == (row.d_v or row.d_k)
    assert (model.dropout, config.train.label_smoothing) == (row.dropout, row.smoothing)
    assert (model.positions is Positions.learned) == row.learned_positions
    assert (config.train.max_steps, config.train.average, config.decode.beam) == (row.steps, 1, 4)
    vocabulary = config.tokenizer.vocab_size
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Transformer(model, vocabulary).parameters())
    print(f"{name}: {count:,}, in the paper {row.millions or 'no number'}")
    assert count == parameters(row, vocabulary)
    if row.millions:  # its vocabulary is not known exactly, and is up to a third of the parameters
        assert count / 1e6 == pytest.approx(row.millions, rel=0.08)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "big"])
def test_a_row_differs_from_the_base_recipe_in_its_own_number_alone(name):
    base, row = load_config(["experiment=paper_base_en_de"]), load_config([f"experiment=paper/table3_{name}"])
    other = dataclasses.replace(
        row,
        model=base.model,
        train=dataclasses.replace(row.train, average=5, label_smoothing=base.train.label_smoothing),
    )
    assert other == base
