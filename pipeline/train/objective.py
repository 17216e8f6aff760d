"""Training objectives. A new objective (a reward) is another module beside these."""

from torch import Tensor, nn

from transloom.model.build import Model
from transloom.model.losses import LossSum, label_smoothed_cross_entropy, symmetric_divergence
from transloom.pipeline.data.labelled import LabelledBatch
from transloom.pipeline.data.masked import MaskedBatch
from transloom.pipeline.data.pairs import PairBatch
from transloom.pipeline.data.pieces import TextBatch
from transloom.pipeline.data.prompt_batches import PromptBatch


class TranslationObjective(nn.Module):
    """Label-smoothed cross-entropy of the target given the source. The objective is a module, so that an engine which
    gathers parameters around `forward` (ZeRO 3) sees their every use, the tied output projection too.

    Args:
        r_drop: alpha of R-drop (Liang et al. 2021): each training batch passes the model twice, with other elements
            dropped, and the two distributions of each target token are drawn together. The loss is half of the paper's
            equation 4, so that it stays the loss of a token: the mean of both cross-entropies, and alpha / 4 times
            KL(P || Q) + KL(Q || P). 0: one pass.
    """

    def __init__(self, model: Model, label_smoothing: float, r_drop: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.r_drop = r_drop

    def forward(self, batch: PairBatch) -> LossSum:
        """The loss summed over the batch's target tokens."""
        hidden = self._hidden(batch)
        loss = label_smoothed_cross_entropy(hidden, self.model.output_weight, batch.labels, self.label_smoothing)
        if not self.r_drop or not self.training:
            return loss
        again = self._hidden(batch)
        other = label_smoothed_cross_entropy(again, self.model.output_weight, batch.labels, self.label_smoothing)
        apart = symmetric_divergence(hidden, again, self.model.output_weight, len(batch.labels))
        return LossSum((loss.total + other.total) / 2 + self.r_drop / 4 * apart, loss.num_tokens)

    def _hidden(self, batch: PairBatch) -> Tensor:
        return self.model(batch.source, batch.source_layout, batch.target, batch.target_layout)


class LanguageModelObjective(nn.Module):
    """Cross-entropy of each token given the earlier tokens of its document, with optional label smoothing."""

    def __init__(self, model: Model, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: TextBatch) -> LossSum:
        """The loss summed over the batch's tokens."""
        hidden = self.model(batch.tokens, batch.layout)
        return label_smoothed_cross_entropy(hidden, self.model.output_weight, batch.labels, self.label_smoothing)


class ClassificationObjective(nn.Module):
    """Cross-entropy of each text's label, with optional label smoothing."""

    def __init__(self, model: Model, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: LabelledBatch) -> LossSum:
        """The loss summed over the batch's texts."""
        pooled = self.model(batch.tokens, batch.layout)
        return label_smoothed_cross_entropy(pooled, self.model.output_weight, batch.labels, self.label_smoothing)


class MaskedLanguageModelObjective(nn.Module):
    """Cross-entropy of each masked token given its piece of text, with optional label smoothing."""

    def __init__(self, model: Model, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: MaskedBatch) -> LossSum:
        """The loss summed over the batch's masked tokens."""
        hidden = self.model(batch.tokens, batch.layout).index_select(0, batch.places)
        return label_smoothed_cross_entropy(hidden, self.model.output_weight, batch.labels, self.label_smoothing)


class ResponseObjective(nn.Module):
    """Cross-entropy of the responses' tokens given the prompts, with optional label smoothing. The prompts' tokens are
    read and not predicted."""

    def __init__(self, model: Model, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: PromptBatch) -> LossSum:
        """The loss summed over the responses' tokens, ends of text included."""
        hidden = self.model(batch.tokens, batch.layout)[batch.places]
        return label_smoothed_cross_entropy(hidden, self.model.output_weight, batch.labels, self.label_smoothing)
