"""Which word of the source each word of a translation is of, by the model's cross-attention.

Letters in shapes: B pairs, S source tokens, T target tokens, H heads; </s> is counted on both sides.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transloom.model.kernels.attention import attention_weights
from transloom.model.packing import Layout
from transloom.model.recurrent import Recurrent
from transloom.model.transformer import Transformer
from transloom.pipeline.data.packing import pack
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from transloom.pipeline.errors import UserError

Links = list[tuple[int, int]]  # (source word, target word), from 0

WORD_START = "\u2581"  # SentencePiece's mark


def pharaoh(links: Links) -> str:
    """Links in the Pharaoh format: 0-0 1-2."""
    return " ".join(f"{source}-{target}" for source, target in links)


def align_words(
    models: Sequence[Any], sources: Sequence[np.ndarray], translations: Sequence[Sequence[int]], pieces: Sequence[str]
) -> list[Links]:
    """The source word of each target word: the one that gets most attention. Words are what stands between spaces.

    A token's attention is that of `alignment_layer`, the mean of its heads (and of the models). A target word's is the
    mean of its tokens', a source word's the sum of its tokens'; that to </s> does not count. Links are sorted.

    Args:
        models: in evaluation mode.
        sources: ids of each, ending in </s>. translations: ids of each, without </s>.
        pieces: the vocabulary by id.
    Raises:
        UserError: a model has no cross-attention.
    """
    links: list[Links] = [[] for _ in sources]
    texts = ["" if i in (PAD_ID, BOS_ID, EOS_ID) else piece for i, piece in enumerate(pieces)]

    def has_text(ids: Sequence[int] | np.ndarray) -> bool:
        return any(texts[int(token)].strip(WORD_START) for token in ids)

    chosen = [i for i, ids in enumerate(translations) if has_text(ids) and has_text(sources[i])]
    if not chosen:
        return links
    targets = [np.array([*translations[i], EOS_ID]) for i in chosen]
    weights = [attention_of(model, [sources[i] for i in chosen], targets) for model in models]
    for place, i in enumerate(chosen):
        mean = np.mean([of_model[place] for of_model in weights], axis=0)  # (T, S)
        source_words = _words([texts[int(token)] for token in sources[i][:-1]])
        target_words = _words([texts[token] for token in translations[i]])
        by_word = np.zeros((target_words[-1] + 1, source_words[-1] + 1))
        np.add.at(by_word, (np.array(target_words)[:, None], np.array(source_words)), mean[:-1, :-1])
        links[i] = sorted((int(source), target) for target, source in enumerate(by_word.argmax(1)))
    return links


def alignment_layer(layers: int) -> int:
    """The decoder layer, from 0, whose cross-attention is nearest to an alignment: the last but one (Garg et al. 2019,
    section 3.1), of a single layer that one."""
    return max(0, layers - 2)


@torch.inference_mode()
def attention_of(
    model: Any, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], layer: int | None = None
) -> list[np.ndarray]:
    """The cross-attention while the model writes the targets: of each pair (T, S), the mean of a layer's heads.

    Args:
        sources, targets: ids of each, ending in </s>.
        layer: None: `alignment_layer`. An LSTM has one attention.
    Raises:
        UserError: the model has no cross-attention.
    """
    device = next(iter(model.parameters())).device
    reads = [np.array([BOS_ID, *ids[:-1]]) for ids in targets]
    (source, source_layout), (read, read_layout) = (
        (tokens.to(device), layout.to(device)) for tokens, layout in (pack(list(ids), []) for ids in (sources, reads))
    )
    match model:
        case Transformer():
            layer = alignment_layer(len(model.decoder)) if layer is None else layer
            weights = _transformer_weights(model, source, source_layout, read, read_layout, layer)
        case Recurrent():
            weights = _recurrent_weights(model, source, source_layout, read, read_layout)
        case _:
            raise UserError(f"align: a {type(model).__name__} has no attention to the source that words are aligned by")
    by_pair = weights.float().cpu().numpy()
    return [by_pair[i, : len(targets[i]), : len(ids)] for i, ids in enumerate(sources)]


def _transformer_weights(
    model: Transformer, source: Tensor, source_layout: Layout, read: Tensor, read_layout: Layout, layer: int
) -> Tensor:
    """(B, T, S)"""
    kept: list[Tensor] = []
    attention: Any = model.decoder[layer].cross_attention  # type: ignore[union-attr]
    hook = attention.register_forward_pre_hook(lambda module, inputs: kept.append(module.weights(*inputs)))
    try:
        model(source, source_layout, read, read_layout)
    finally:
        hook.remove()
    return kept[0].mean(1)


def _recurrent_weights(
    model: Recurrent, source: Tensor, source_layout: Layout, read: Tensor, read_layout: Layout
) -> Tensor:
    """(B, T, S)"""
    memory = model.encode(source, source_layout)
    kept: list[Tensor] = []

    def attend(query: Tensor) -> Tensor:  # (T, B, d_model)
        query = query.transpose(0, 1)
        kept.append(attention_weights(query, memory.keys, memory.mask))
        return memory.read(query).transpose(0, 1)

    grid = read.new_zeros(read_layout.shape).flatten()
    grid[read_layout.cells] = read
    embedded = model.embed(grid.view(read_layout.shape).T)
    model.decode(embedded, [None] * len(model.decoder), attend)
    return kept[0]


def _words(pieces: Sequence[str]) -> list[int]:
    """The number of each token's word in the text, from 0. Spaces alone are no word."""
    words: list[int] = []
    word, is_behind_space, has_text = 0, False, False
    for piece in pieces:
        is_behind_space |= piece.startswith(WORD_START)
        if piece.strip(WORD_START):
            word += is_behind_space and has_text
            is_behind_space, has_text = False, True
        words.append(word)
    return words
