"""How much a token's embedding changes the loss of a text's last token, by their distance: whether a model can learn
what is far apart (Hochreiter 1991; Bengio et al. 1994)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transloom.pipeline.data.prompt_batches import PromptBatch
from transloom.pipeline.inside.examples import Sample, is_pairs, plain_objective

NEAR = 10  # tokens: what is nearer is not of the fit; there the residual path alone counts
FLOOR = 1e-30  # below it fp32 has lost the gradient


@dataclass(frozen=True)
class GradientByDistance:
    """The norm of the gradient by distance.

    Attributes:
        norms: (L,) of d loss(last token) / d embedding, the mean over texts; norms[t] at t tokens before the position
            that predicts the last token.
    """

    norms: np.ndarray

    @property
    def fitted(self) -> np.ndarray:
        """The distances of the fit, whose gradients fp32 still has."""
        distances = np.arange(len(self.norms))
        return distances[(distances >= min(NEAR, len(self.norms) // 2)) & (self.norms > FLOOR)]

    @property
    def rate(self) -> float:
        """The rate a token of exp(-rate * t), fitted to the logarithm; NaN where too few norms are left."""
        places = self.fitted
        if len(places) < 3:
            return float("nan")
        return -float(np.polyfit(places, np.log(self.norms[places]), 1)[0])

    def mean_at(self, distance: int) -> float:
        """The mean over a few distances around this one, a tenth of it on either side."""
        reach = max(1, distance // 10)
        return float(self.norms[max(0, distance - reach) : distance + reach + 1].mean())

    @property
    def distances(self) -> list[int]:
        """The distances of a table: 1, 2, 5, 10, 20, 50, … and the farthest."""
        last = len(self.norms) - 1
        steps = [step * 10**power for power in range(7) for step in (1, 2, 5) if step * 10**power < last]
        return [*steps, last]

    @property
    def spread(self) -> float:
        """The largest by the smallest of the means at the table's distances beyond NEAR tokens; infinite where fp32 has
        lost the smallest, NaN where it has lost all or there are none."""
        means = [self.mean_at(distance) for distance in self.distances if distance > NEAR]
        if max(means, default=0.0) <= FLOOR:
            return float("nan")
        return max(means) / min(means) if min(means) > FLOOR else float("inf")


def gradient_by_distance(model: Any, sample: Sample) -> GradientByDistance:
    """The mean over the sample's texts, each cut at its beginning to the length of the shortest. Of a prompt and its
    response the last token is the last one before the end of text.

    Args:
        model: of one stack, in evaluation mode, with trained weights or random ones.
    """
    objective, device = plain_objective(sample.task, model), model.embedding.weight.device
    falls: list[np.ndarray] = []  # of each text, its norms from the last position to the first
    for batch, count in sample.batches():
        assert not is_pairs(batch)
        moved = batch.to(device)
        embedded: list[Tensor] = []

        def keep(module: object, arguments: object, output: Tensor, kept: list[Tensor] = embedded) -> Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[0]

        hook = model.embedding.register_forward_hook(keep)
        try:
            # cuDNN has no backward pass of an LSTM in evaluation mode.
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                hidden = model(moved.tokens, moved.layout)
        finally:
            hook.remove()
        ends = moved.layout.lengths.cumsum(0)[:count]
        last, labels = _last_tokens(moved, ends)
        logits = torch.nn.functional.linear(hidden[last], objective.model.output_weight)
        torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum").backward()
        (of_embedding,) = (part.grad for part in embedded)
        assert of_embedding is not None
        by_token = of_embedding.float().norm(dim=-1).double().cpu().numpy()
        begins = (ends - moved.layout.lengths[:count]).tolist()
        falls += [by_token[begin : place + 1][::-1] for begin, place in zip(begins, last.tolist(), strict=True)]
    model.zero_grad()
    shortest = min(map(len, falls))
    return GradientByDistance(np.mean([fall[:shortest] for fall in falls], axis=0))


def _last_tokens(batch: Any, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The position that predicts each text's last token, (B,), and that token, (B,)."""
    if isinstance(batch, PromptBatch):  # the last position predicts the end of text, the one before the last token
        last = ends - 2
        return last, batch.labels[torch.searchsorted(batch.places, last)]
    return ends - 1, batch.labels[ends - 1]
