"""The attention of a trained model on one text: what every head of every layer looks at.

Letters in shapes: S tokens of the source, T tokens of the translation, H heads; </s> is counted on both sides.
"""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transloom.model.attention import CrossAttention, SelfAttention
from transloom.model.decoder_only import Stack
from transloom.model.kernels.attention import attention_weights
from transloom.model.packing import Layout
from transloom.model.recurrent import Recurrent
from transloom.model.transformer import Transformer
from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.decoding import translate_tokens
from transloom.pipeline.generate.translator import Translator

WORD_START = "\u2581"  # SentencePiece's mark
END_LABEL = "<end>"  # of a text, with which a language model also begins
STACKS = ("encoder", "decoder", "cross")
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

    A language model has `decoder` alone, with `read` and `written`; a model that reads a text from both sides `encoder`
    alone, with `source`.
    """

    source: list[str]
    read: list[str]
    written: list[str]
    encoder: np.ndarray | None
    decoder: np.ndarray | None
    cross: np.ndarray | None
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
            weights = _weights(model, lambda: model(tokens[0], layouts[0], tokens[1], layouts[1]))
            s, t = len(source), len(read)  # a grid may be longer than its longest sentence
            encoder, decoder = weights["encoder"][..., :s, :s], weights["decoder"][..., :t, :t]
            cross = weights["cross"][..., :t, :s]
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


@torch.inference_mode()
def text_attention_maps(model: Stack, tokenizer: TextTokenizer, text: str) -> AttentionMaps:
    """The attention while a model of one stack reads a text, behind the end of text that it begins with.

    Raises:
        UserError: the text is empty, or longer than the model can read.
    """
    (ids,) = tokenizer.encode([text])
    room = model.config.max_positions
    _check_length("text", len(ids) + 1, room)
    read = np.array([tokenizer.end_of_text, *ids])
    device = model.embedding.weight.device
    layout = Layout.of(torch.tensor([len(read)])).to(device)
    weights = _weights(model, lambda: model(torch.from_numpy(read.astype(np.int64)).to(device), layout))
    labels = _labels([tokenizer.decode([i]) if i != tokenizer.end_of_text else END_LABEL for i in read])
    encoder, decoder = (weights.get(stack) for stack in ("encoder", "decoder"))
    length = len(read)
    return AttentionMaps(
        source=labels if encoder is not None else [],
        read=labels if decoder is not None else [],
        written=[*labels[1:], "…"] if decoder is not None else [],
        encoder=None if encoder is None else encoder[..., :length, :length],
        decoder=None if decoder is None else decoder[..., :length, :length],
        cross=None,
        sentence=text,
        translation="",
    )


def attentions(model: nn.Module) -> dict[str, list[SelfAttention | CrossAttention]]:
    """The attentions of each stack, from the first layer on: "encoder", "decoder" and "cross" of a Transformer; of a
    model of one stack "decoder", or "encoder" where a token sees the whole text. Empty without attention."""
    stacks: dict[str, list[SelfAttention | CrossAttention]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention | CrossAttention):
            stacks.setdefault(_stack_of(name, module, model), []).append(module)
    return {stack: stacks[stack] for stack in STACKS if stack in stacks}


def _stack_of(name: str, module: SelfAttention | CrossAttention, model: Any) -> str:
    if isinstance(module, CrossAttention):
        return "cross"
    if isinstance(model, Stack):
        return "decoder" if model.config.causal else "encoder"
    return name.partition(".")[0]


@contextmanager
def watched(model: nn.Module, see: Callable[[str, int, Tensor], object]) -> Iterator[None]:
    """A block in which every attention of the model's forward passes is also computed as weights.

    Args:
        see: called with the stack, the number of the layer, and the weights, (B, H, L queries, L keys).
    """
    places = {
        attention: (stack, layer)
        for stack, layers in attentions(model).items()
        for layer, attention in enumerate(layers)
    }

    def ask(attention: nn.Module, arguments: tuple, settings: dict) -> None:
        assert isinstance(attention, SelfAttention | CrossAttention)
        see(*places[attention], attention.weights(*arguments, **settings))

    hooks = [attention.register_forward_pre_hook(ask, with_kwargs=True) for attention in places]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _weights(model: nn.Module, run: Callable[[], object]) -> dict[str, np.ndarray]:
    """The weights of a forward pass of one text: (layers, H, L queries, L keys) of each stack."""
    kept: dict[str, list[Tensor]] = {}
    with watched(model, lambda stack, layer, weights: kept.setdefault(stack, []).append(weights[0])):
        run()
    return {stack: torch.stack(weights).float().cpu().numpy() for stack, weights in kept.items()}


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
