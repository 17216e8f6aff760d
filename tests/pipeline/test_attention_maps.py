"""The attention of a model on a sentence: a model that copies looks at what it copies; labels are for people."""

import numpy as np
import pytest
import torch
from torch import nn

from transloom.model.config import Norm, RecurrentConfig, TransformerConfig
from transloom.model.packing import Layout
from transloom.model.recurrent import Recurrent
from transloom.model.transformer import Transformer
from transloom.pipeline.attention_maps import AttentionMaps, _labels, attention_maps
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator

SEARCH = BeamConfig(beam=2, extra_tokens=5)
CONFIG = TransformerConfig(
    d_model=32,
    d_ff=64,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=2,
    dropout=0.0,
    norm=Norm.pre,
    max_positions=40,
)
WORDS = ("Hund", "läuft", "zum", "Haus", "und", "sieht", "Käse", "rot")


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    """A model that has learnt in a few seconds to copy its input."""
    root = tmp_path_factory.mktemp("tokenizer")
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(4, 9))) for _ in range(400)]
    (root / "text").write_bytes("".join(f"{line}\n" for line in lines).encode())
    train_tokenizer([root / "text"], TokenizerConfig(vocab_size=400), root)
    tokenizer = Tokenizer.load(root)
    torch.manual_seed(0)
    model = Transformer(CONFIG, tokenizer.vocab_size)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    sentences = [torch.tensor(ids) for ids in tokenizer.encode(lines)]
    for step in range(400):
        batch = [sentences[(32 * step + i) % len(sentences)] for i in range(32)]
        layout = Layout.of(torch.tensor([len(ids) for ids in batch]))
        read = torch.cat([torch.cat((torch.tensor([tokenizer.bos_id]), ids[:-1])) for ids in batch])
        logits = model(torch.cat(batch), layout, read, layout) @ model.embedding.weight.T
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.cat(batch)).backward()
        optimizer.step()
    return Translator(model.eval(), tokenizer, {})


@pytest.fixture(scope="module")
def maps(translator: Translator) -> AttentionMaps:
    return attention_maps(translator, "Hund sieht Haus und läuft", SEARCH)


def test_every_row_sums_to_one_and_the_future_gets_nothing(maps: AttentionMaps) -> None:
    source, target = len(maps.source), len(maps.written)
    assert maps.encoder is not None and maps.decoder is not None
    assert maps.encoder.shape == (1, 2, source, source)
    assert maps.decoder.shape == (2, 2, target, target)
    assert maps.cross.shape == (2, 2, target, source)
    for weights in (maps.encoder, maps.decoder, maps.cross):
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert (np.triu(maps.decoder, 1) == 0).all()


def test_a_model_that_copies_looks_at_the_token_it_writes(maps: AttentionMaps) -> None:
    assert maps.translation == maps.sentence == "Hund sieht Haus und läuft"
    diagonal = np.diagonal(maps.cross, axis1=2, axis2=3).mean(-1)  # (layers, heads)
    assert diagonal.max() > 4 / len(maps.source), "chance gives 1 / length"


def test_a_model_that_copies_aligns_every_word_with_itself(translator: Translator) -> None:
    random = np.random.default_rng(1)
    lines = [" ".join(random.choice(WORDS, random.integers(4, 9), replace=False)) for _ in range(50)]
    links = [link for links in translator.align(lines, lines) for link in links]
    assert len(links) == sum(len(line.split()) for line in lines)
    assert sum(source == target for source, target in links) > 0.98 * len(links)


def test_labels_are_pieces_as_people_read_them(maps: AttentionMaps, translator: Translator) -> None:
    assert maps.source == ["Hund", "sieht", "Haus", "und", "läuft", "</s>"]
    assert maps.written == maps.source
    assert maps.read == ["<s>", *maps.source[:-1]]
    odd = attention_maps(translator, "Haushund, 中", SEARCH)
    assert odd.source[0] == "Haus"
    assert odd.source[1].startswith("·"), "it goes on with a word"
    assert "," in odd.source or "<0x2C>" in odd.source
    assert odd.source[-5:] == ["␣", "<0xE4>", "<0xB8>", "<0xAD>", "</s>"]


def test_no_label_is_blank() -> None:
    pieces = ["\u00a0", "▁\u202f", "\u200b\u00ad", "▁", "▁▁", "«\u00a0"]
    assert _labels(pieces) == ["U+00A0", "U+202F", "U+200BU+00AD", "␣", "␣", "«\u00a0"]


def test_a_given_translation_is_read_instead_of_the_models_own(maps: AttentionMaps, translator: Translator) -> None:
    given = attention_maps(translator, maps.sentence, SEARCH, "Käse und Haus")
    assert given.translation == "Käse und Haus"
    assert given.written == ["Käse", "und", "Haus", "</s>"]
    np.testing.assert_allclose(given.encoder, maps.encoder)
    own = attention_maps(translator, maps.sentence, SEARCH, maps.translation)
    np.testing.assert_allclose(own.cross, maps.cross)


def test_a_recurrent_model_has_its_one_attention(translator: Translator) -> None:
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(d_model=16, encoder_layers=1, decoder_layers=2), translator.tokenizer.vocab_size)
    recurrent = Translator(model.eval(), translator.tokenizer, {})
    maps, other = (attention_maps(recurrent, "Hund sieht Haus", SEARCH, text) for text in ("zum Käse", "zum Haus und"))
    assert maps.encoder is None and maps.decoder is None
    assert maps.cross.shape == (1, 1, len(maps.written), len(maps.source))
    np.testing.assert_allclose(maps.cross.sum(-1), 1.0, rtol=1e-5)
    # Up to the token that differs, and while it is written, both have read the same.
    np.testing.assert_allclose(maps.cross[0, 0, :2], other.cross[0, 0, :2], rtol=1e-5)
    assert not np.allclose(maps.cross[0, 0, 2], other.cross[0, 0, 2], rtol=1e-5)


def test_the_model_is_left_as_it_was(translator: Translator) -> None:
    attention_maps(translator, "Hund", SEARCH)
    assert not any(module._forward_pre_hooks for module in translator.model.modules())


@pytest.mark.parametrize(
    ("sentence", "translation", "message"),
    [
        (" ", None, "the sentence is empty"),
        ("Hund", "", "the translation is empty"),
        ("Hund " * 50, None, "the sentence has 51 tokens, and the model reads at most 40"),
        ("Hund", "Hund " * 50, "the translation has 51 tokens"),
    ],
)
def test_what_can_not_be_read_is_refused(
    translator: Translator, sentence: str, translation: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        attention_maps(translator, sentence, SEARCH, translation)
