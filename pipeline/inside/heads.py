"""What each head of a model looks at, over a corpus: how much of its attention goes to tokens of some kind.

Letters in shapes: B texts, L tokens of the longest, S and T of source and target, H heads.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.model.window import Window
from transloom.model.window import visible as sees_within
from transloom.pipeline.attention_maps import attentions, watched
from transloom.pipeline.inside.alignment import LexicalAligner
from transloom.pipeline.inside.examples import Sample, is_pairs, plain_objective
from transloom.pipeline.progress import Progress, no_progress


@dataclass(frozen=True)
class StackScores:
    """The scores of a stack's heads.

    Attributes:
        heads: by the score's name, (layers, H): the mean share, from 0 to 1, of a token's attention that goes to tokens
            of that kind, over the tokens that see one.
        uniform: by the score's name, that share if all visible tokens were looked at alike.
    """

    heads: dict[str, np.ndarray]
    uniform: dict[str, float]


def head_scores(
    model: Any,
    sample: Sample,
    is_punctuation: np.ndarray,
    aligner: LexicalAligner | None = None,
    progress: Progress = no_progress,
) -> dict[str, StackScores]:
    """The scores of each stack: see `self_kinds` and `cross_kinds`.

    Args:
        model: in evaluation mode.
        is_punctuation: (V,) by the token's id. aligner: of pairs.
    """
    objective, device = plain_objective(sample.task, model), model.embedding.weight.device
    stacks = attentions(model)
    shapes = {stack: (len(layers), layers[0].num_heads) for stack, layers in stacks.items()}
    sums: dict[str, dict[str, np.ndarray]] = {stack: {} for stack in stacks}
    evenly: dict[str, dict[str, float]] = {stack: defaultdict(float) for stack in stacks}
    queries: dict[str, dict[str, int]] = {stack: defaultdict(int) for stack in stacks}
    kinds: dict[str, dict[str, Tensor]] = {}

    def see(stack: str, layer: int, weights: Tensor) -> None:
        for name, kind in kinds[stack].items():
            total = sums[stack].setdefault(name, np.zeros(shapes[stack]))
            # Not a product: a query of padding that no key is visible to has weights that are NaN.
            seen = weights.float().masked_fill(~kind[:, None], 0.0)
            total[layer] += seen.sum((0, 2, 3)).double().cpu().numpy()

    done = 0
    with torch.inference_mode(), watched(model, see):
        for batch, count in sample.batches():
            moved = batch.to(device)
            visible = _visible(moved, count, {stack: layers[0] for stack, layers in stacks.items()})
            kinds_of = _kinds(moved, is_punctuation, aligner)
            kinds = {stack: kinds_of[stack](sees) for stack, sees in visible.items()}
            for stack, of_stack in kinds.items():
                for name, kind in of_stack.items():
                    num_visible = visible[stack].sum(-1).clamp(min=1)
                    evenly[stack][name] += float((kind.sum(-1) / num_visible).sum())
                    queries[stack][name] += int(kind.any(-1).sum())
            objective(moved)
            done += count
            progress("looking at attention, examples", done, len(sample.rows))
    return {
        stack: StackScores(
            {name: total / queries[stack][name] for name, total in of_stack.items()},
            {name: evenly[stack][name] / queries[stack][name] for name in of_stack},
        )
        for stack, of_stack in sums.items()
    }


def self_kinds(ids: Tensor, visible: Tensor, is_punctuation: Tensor) -> dict[str, Tensor]:
    """Which tokens self-attention may look at for each score.

    itself; previous and next: its neighbours; first: the text's first token; same: the same token elsewhere;
    punctuation: elsewhere; induction: what followed the same token elsewhere (Olsson et al. 2022).

    Args:
        ids: (B, L). visible: (B, L, L) whether a token sees another one. is_punctuation: (V,)
    Returns:
        by the score's name (B, L queries, L keys); scores without any token are left out.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    distance = places - places[:, None]  # (L queries, L keys)
    same = ids[:, :, None] == ids[:, None]
    followed = torch.nn.functional.pad(same[..., :-1], (1, 0))  # the key's token follows one that equals the query
    kinds = {
        "previous": distance == -1,
        "next": distance == 1,
        "itself": distance == 0,
        "first": (places == 0) & (distance < 0),
        "same": same & (distance != 0),
        "punctuation": is_punctuation[ids][:, None] & (distance != 0),
        "induction": followed & (distance != 0) & (distance != 1),
    }
    seen = {name: kind & visible for name, kind in kinds.items()}
    return {name: kind for name, kind in seen.items() if bool(kind.any())}


def cross_kinds(
    source: Tensor, visible: Tensor, is_punctuation: Tensor, aligned: Tensor, ends: Tensor
) -> dict[str, Tensor]:
    """Which source tokens cross-attention may look at for each score: the aligned one, the one at the same place,
    punctuation, and the source's end.

    Args:
        source: (B, S) ids. visible: (B, T, S). aligned: (B, T) places. ends: (B,) places.
    """
    places = torch.arange(source.shape[1], device=source.device)
    target = torch.arange(visible.shape[1], device=source.device)
    kinds = {
        "aligned": places == aligned[..., None],
        "same place": (places == target[:, None])[None],
        "punctuation": is_punctuation[source][:, None],
        "end": (places == ends[:, None])[:, None],
    }
    seen = {name: kind & visible for name, kind in kinds.items()}
    return {name: kind for name, kind in seen.items() if bool(kind.any())}


def _visible(batch: Any, count: int, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whether a real token sees another one, by stack: (B, L queries, L keys)

    Args:
        layers: an attention of each stack.
    """
    if is_pairs(batch):
        source, target = batch.source_layout, batch.target_layout
        sides = {"encoder": (source, source), "decoder": (target, target), "cross": (target, source)}
    else:
        sides = dict.fromkeys(layers, (batch.layout, batch.layout))
    return {
        stack: _sees(*sides[stack], count, stack == "decoder", getattr(layer, "window", None))
        for stack, layer in layers.items()
    }


def _sees(queries: Layout, keys: Layout, count: int, causal: bool, window: Window | None) -> Tensor:
    device = queries.lengths.device
    query_places, key_places = (torch.arange(side.shape[1], device=device) for side in (queries, keys))
    rows, columns = query_places < queries.lengths[:, None], key_places < keys.lengths[:, None]
    real = torch.arange(len(queries.lengths), device=device) < count
    near = sees_within(query_places, key_places, causal, window)
    return (rows & real[:, None])[:, :, None] & columns[:, None] & near


def _kinds(
    batch: Any, is_punctuation: np.ndarray, aligner: LexicalAligner | None
) -> dict[str, Callable[[Tensor], dict[str, Tensor]]]:
    """By stack, what makes the kinds of its tokens from those that are visible."""
    marks = torch.from_numpy(is_punctuation)

    def of_text(tokens: Tensor, layout: Layout) -> Callable[[Tensor], dict[str, Tensor]]:
        ids = tokens[layout.token_of_cell]
        return lambda visible: self_kinds(ids, visible, marks.to(ids.device))

    if not is_pairs(batch):
        of_batch = of_text(batch.tokens, batch.layout)
        return {"decoder": of_batch, "encoder": of_batch}
    source = batch.source[batch.source_layout.token_of_cell]
    labels = torch.nn.functional.pad(batch.labels, (0, len(batch.target) - len(batch.labels)))
    aligned = _aligned(source, labels[batch.target_layout.token_of_cell], batch, aligner)
    ends = batch.source_layout.lengths - 1
    return {
        "encoder": of_text(batch.source, batch.source_layout),
        "decoder": of_text(batch.target, batch.target_layout),
        "cross": lambda visible: cross_kinds(source, visible, marks.to(source.device), aligned, ends),
    }


def _aligned(source: Tensor, written: Tensor, batch: Any, aligner: LexicalAligner | None) -> Tensor:
    """(B, T) the place of the source token that each written token is aligned with; -1: none is known."""
    aligned = torch.full(written.shape, -1)
    if aligner is not None:
        sizes = zip(batch.source_layout.lengths.tolist(), batch.target_layout.lengths.tolist(), strict=True)
        for row, (s, t) in enumerate(sizes):
            if s > 1:  # the ends </s> are aligned with nothing
                words = aligner.align(source[row, : s - 1].cpu().numpy(), written[row, : t - 1].cpu().numpy())
                aligned[row, : t - 1] = torch.from_numpy(words)
    return aligned.to(source.device)


def strongest(scores: np.ndarray, count: int = 3) -> list[tuple[int, int, float]]:
    """The heads with the largest scores, (layer, head, score), numbered from 1."""
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    places: Sequence[tuple[int, int]] = [divmod(int(i), scores.shape[1]) for i in order]
    return [(layer + 1, head + 1, float(scores[layer, head])) for layer, head in places]
