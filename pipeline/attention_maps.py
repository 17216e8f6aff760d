"""The attention of a trained model on one sentence: what every head of every layer looks at.

Letters in shapes: S tokens of the source, T tokens of the translation, H heads; </s> is counted on both sides.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transloom.model.attention import CrossAttention, SelfAttention, attention_weights
from transloom.model.packing import Layout
from transloom.model.recurrent import Recurrent
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator, translate_tokens

WORD_START = "\u2581"  # SentencePiece's mark
BLANK = ("Zs", "Zl", "Zp", "Cc", "Cf")  # Unicode's categories of spaces, line ends, controls and invisible formatting


@dataclass(frozen=True)
class AttentionMaps:
    """Weights of attention, each row of which sums to 1: row q says how much query q takes of every key.

    Attributes:
        source, read, written: the labels of the source's tokens (S,), and of those that the decoder reads and writes
            at each of its T positions: `read` begins with <s>, `written` ends with </s>.
        encoder: (layers, H, S, S) of the source's tokens to each other.
        decoder: (layers, H, T, T): writing written[q], to read[k]; zero above the diagonal.
        cross: (layers, H, T, S): writing written[q], to source[k]. A recurrent model has this alone, (1, 1, T, S).
        sentence, translation: the two texts.
    """

    source: list[str]
    read: list[str]
    written: list[str]
    encoder: np.ndarray | None
    decoder: np.ndarray | None
    cross: np.ndarray
    sentence: str
    translation: str


@torch.inference_mode()
def attention_maps(
    translator: Translator, sentence: str, search: BeamConfig, translation: str | None = None
) -> AttentionMaps:
    """The attention while the model writes `translation`, by default the one that it finds for the sentence itself.

    Raises:
        UserError: the sentence or the translation is empty, or longer than the model can read.
    """
    tokenizer, model = translator.tokenizer, translator.model
    source = tokenizer.encode_arrays([sentence])[0]
    _check_length("sentence", len(source), model.config.max_positions)
    if translation is None:
        said = translate_tokens(model, [source], search)[0].tokens
        target = np.array([*said, EOS_ID])
    else:
        target = tokenizer.encode_arrays([translation])[0]
        _check_length("translation", len(target), model.config.max_positions)
    read = np.array([BOS_ID, *target[:-1]])

    device = model.embedding.weight.device
    layouts = [Layout.of(torch.tensor([len(ids)])).to(device) for ids in (source, read)]
    tokens = [torch.from_numpy(ids.astype(np.int64)).to(device) for ids in (source, read)]
    encoder = decoder = None
    match model:
        case Transformer():
            encoder, decoder, cross = _weights(model, tokens[0], layouts[0], tokens[1], layouts[1])
        case Recurrent():
            cross = _recurrent_weights(model, tokens[0], layouts[0], tokens[1])
    vocabulary = tokenizer.pieces()
    return AttentionMaps(
        source=_labels([vocabulary[i] for i in source]),
        read=_labels([vocabulary[i] for i in read]),
        written=_labels([vocabulary[i] for i in target]),
        encoder=encoder,
        decoder=decoder,
        cross=cross,
        sentence=sentence,
        translation=tokenizer.decode([target[:-1].tolist()])[0],
    )


def _check_length(what: str, tokens: int, room: int | None) -> None:
    if tokens == 1:
        raise UserError(f"the {what} is empty: there is nothing to look at")
    if room is not None and tokens > room:
        raise UserError(f"the {what} has {tokens} tokens, and the model reads at most {room}: give a shorter one")


def _weights(
    model: Transformer, source: Tensor, source_layout: Layout, read: Tensor, read_layout: Layout
) -> list[np.ndarray]:
    """Runs the model once, teacher-forced, and asks each attention for its weights on what comes to it."""
    found: dict[str, list[Tensor]] = {"encoder": [], "decoder": [], "cross": []}

    def ask(attention: nn.Module, arguments: tuple, settings: dict) -> None:
        assert isinstance(attention, SelfAttention | CrossAttention)
        found[kinds[attention]].append(attention.weights(*arguments, **settings)[0])

    kinds = {
        module: "cross" if isinstance(module, CrossAttention) else name.partition(".")[0]
        for name, module in model.named_modules()
        if isinstance(module, SelfAttention | CrossAttention)
    }
    hooks = [attention.register_forward_pre_hook(ask, with_kwargs=True) for attention in kinds]
    try:
        model(source, source_layout, read, read_layout)
    finally:
        for hook in hooks:
            hook.remove()
    encoder, decoder, cross = (torch.stack(weights).float().cpu().numpy() for weights in found.values())
    s, t = len(source), len(read)  # a grid may be longer than its longest sentence
    return [encoder[..., :s, :s], decoder[..., :t, :t], cross[..., :t, :s]]


def _recurrent_weights(model: Recurrent, source: Tensor, layout: Layout, read: Tensor) -> np.ndarray:
    """Runs the model once, teacher-forced, through an attention that keeps its weights."""
    memory = model.encode(source, layout)
    found: list[Tensor] = []

    def attend(query: Tensor) -> Tensor:  # (T, 1, d_model)
        query = query.transpose(0, 1)
        found.append(attention_weights(query, memory.keys, memory.mask))
        return memory.read(query).transpose(0, 1)

    model.decode(model.embed(read)[:, None], [None] * len(model.decoder), attend)
    return found[0][None, :, :, : len(source)].float().cpu().numpy()


def _labels(pieces: list[str]) -> list[str]:
    """Pieces as people read them: "▁Haus" is "Haus", and "tür", which goes on with a word, is "·tür". Of one without
    any ink, such as a no-break space, the characters' numbers."""
    labels = []
    for piece in pieces:
        text = piece.removeprefix(WORD_START).replace(WORD_START, " ")
        goes_on = not piece.startswith(WORD_START) and text[:1].isalnum()
        if all(unicodedata.category(character) in BLANK for character in text):
            text = "".join("␣" if character == " " else f"U+{ord(character):04X}" for character in text or " ")
        labels.append(f"·{text}" if goes_on else text)
    return labels
