"""Models read at longer texts than they were trained on."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from transloom.model.build import build_model
from transloom.model.config import DecoderConfig, Positions
from transloom.model.packing import Layout
from transloom.pipeline.errors import UserError
from transloom.pipeline.tasks.task import Examples

FACTORS = (1, 2, 4)


class Extrapolated(NamedTuple):
    """The loss of a model on texts of some length.

    Attributes:
        length: tokens of a text. loss: in nats a token; None: the model can't read so long texts.
        last_quarter: the loss of the last quarter of each text alone.
    """

    length: int
    loss: float | None
    last_quarter: float | None


def extrapolate(model: Any, documents: Examples, texts: int) -> list[Extrapolated]:
    """The loss on the same texts, read in pieces of 1, 2 and 4 times the length that the model was trained on.

    Each text is 4 times that length, from a document's beginning. It is read as four, two or one piece; so all tokens
    are predicted at all lengths, and only how much stands before them differs.

    Args:
        model: a decoder-only model in evaluation mode. documents: examples with one column of ids.
        texts: at most so many.
    Raises:
        UserError: no document is long enough.
    """
    config: DecoderConfig = model.config
    length = config.max_positions
    whole = FACTORS[-1] * length
    (column,) = documents.columns
    rows = [row for row in range(len(documents)) if documents.lengths[row, 0] > whole][:texts]
    if not rows:
        raise UserError(
            f"of the validation set no document has {whole + 1:,} tokens, {FACTORS[-1]} times model.max_positions: "
            "take a run with a shorter context, or longer documents"
        )
    chosen = [torch.as_tensor(documents.get(column, row)[: whole + 1].astype("int64")) for row in rows]
    device = model.embedding.weight.device
    results = []
    for factor in FACTORS:
        longer = _at_length(model, factor * length)
        if longer is None:
            results.append(Extrapolated(factor * length, None, None))
            continue
        losses = torch.cat([_losses(longer.to(device), text.to(device), factor * length) for text in chosen])
        quarter = losses.view(-1, factor * length)[:, -(factor * length // 4) :]
        results.append(Extrapolated(factor * length, float(losses.mean()), float(quarter.mean())))
    return results


def _at_length(model: Any, length: int) -> Any:
    """The model with the same weights for texts of `length` tokens; None: it has no positions beyond its own."""
    config = model.config
    if length == config.max_positions:
        return model
    if isinstance(config, DecoderConfig) and config.positions is Positions.learned:
        return None
    longer = build_model(replace(config, max_positions=length), model.vocab_size)
    longer.load_state_dict(model.state_dict())
    return longer.eval()


@torch.inference_mode()
def _losses(model: Any, text: torch.Tensor, length: int) -> torch.Tensor:
    """(tokens,) the negative log-probability of each token of a text but its first, read in pieces of `length`."""
    parts = []
    for start in range(0, len(text) - 1, length):
        read, labels = text[start : start + length], text[start + 1 : start + length + 1]
        hidden = model(read, Layout.of(torch.tensor([len(read)], device=read.device)))
        logits = torch.nn.functional.linear(hidden, model.output_weight).float()
        parts.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(parts)
