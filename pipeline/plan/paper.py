"""What the trainings of "Attention Is All You Need" cost their authors (table 2 and sections 5.2 and 6.1)."""

from dataclasses import dataclass

from transloom.model.build import ModelConfig
from transloom.model.config import TransformerConfig

GPUS = 8  # P100
# The paper multiplies the training's time by the GPUs and by 9.5 TFLOP/s (its footnote 5): what they could compute.
P100_FLOPS = 9.5e12


@dataclass(frozen=True)
class PaperCost:
    """A training of the paper's.

    Attributes:
        step_seconds, hours: on eight P100. flops: as published.
        score: on newstest2014, tokenised.
    """

    name: str
    steps: int
    step_seconds: float
    hours: float
    flops: float
    score: str


COSTS = {
    ("base", "wmt14_en_de"): PaperCost("base, English-German", 100_000, 0.4, 12.0, 3.3e18, "BLEU 27.3"),
    ("base", "wmt14_en_fr"): PaperCost("base, English-French", 100_000, 0.4, 12.0, 3.3e18, "BLEU 38.1"),
    ("big", "wmt14_en_de"): PaperCost("big, English-German", 300_000, 1.0, 84.0, 2.3e19, "BLEU 28.4"),
    ("big", "wmt14_en_fr"): PaperCost("big, English-French", 300_000, 1.0, 84.0, 2.3e19, "BLEU 41.8"),
}
SHAPES = {"base": (6, 6, 512, 2048, 8), "big": (6, 6, 1024, 4096, 16)}  # table 3


def paper_cost(model: ModelConfig, corpus: str) -> PaperCost | None:
    """The paper's cost of this model on the corpus of this name; None of what it did not train."""
    if not isinstance(model, TransformerConfig) or model.d_k or model.d_v:
        return None
    shape = (model.encoder_layers, model.decoder_layers, model.d_model, model.d_ff, model.num_heads)
    return next((COSTS.get((name, corpus)) for name, paper in SHAPES.items() if shape == paper), None)
