"""A model in another format says the same as ours; a format that can't hold it says so."""

import sys
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import sacrebleu
import sentencepiece
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianMTModel

from transloom.jobs.__main__ import main
from transloom.model.build import ModelConfig, build_model
from transloom.model.config import Attention, Norm, Positions, RecurrentConfig, TransformerConfig
from transloom.model.packing import Layout
from transloom.model.transformer import Transformer
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.tokenizer import BOS_ID, MODEL_FILE, Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.export import Format, Quantization, export
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import save_model
from transloom.pipeline.phrasebook import phrasebook_pairs

CONFIG = TransformerConfig(d_model=64, d_ff=128, num_heads=4, encoder_layers=1, decoder_layers=2, dropout=0.0)
CPU = torch.device("cpu")
STEPS, SENTENCES = 250, 64


def pack(parts: list[np.ndarray]) -> tuple[Tensor, Layout]:
    return torch.from_numpy(np.concatenate(parts)).long(), Layout.of(torch.tensor([len(part) for part in parts]))


def logits(model: Transformer, sources: list[np.ndarray], targets: list[np.ndarray]) -> Tensor:
    """What the model says of every token of the targets: (tokens, vocabulary)."""
    shifted = [np.concatenate(([BOS_ID], target[:-1])) for target in targets]
    return model(*pack(sources), *pack(shifted)) @ model.embedding.weight.T


def train(place: Path, pairs: list[SentencePair], steps: int, sentences: int) -> None:
    """Writes tokenizer.model, and the model in `model`, which sees so many sentences at each step."""
    sides = [[pair.source for pair in pairs], [pair.target for pair in pairs]]
    for name, lines in zip(("source", "target"), sides, strict=True):
        (place / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    train_tokenizer([place / "source", place / "target"], TokenizerConfig(vocab_size=600), place)
    tokenizer = Tokenizer.load(place)
    sources, targets = (tokenizer.encode_arrays(lines) for lines in sides)
    torch.manual_seed(0)
    model = Transformer(CONFIG, tokenizer.vocab_size)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    order = sorted(range(len(pairs)), key=lambda i: len(targets[i]))  # like lengths together
    for step in np.random.default_rng(0).permutation(steps):
        first = step * sentences % len(pairs)
        chosen = order[first : first + sentences]
        said = logits(model, [sources[i] for i in chosen], [targets[i] for i in chosen])
        labels = torch.from_numpy(np.concatenate([targets[i] for i in chosen])).long()
        optimizer.zero_grad()
        nn.functional.cross_entropy(said, labels).backward()
        optimizer.step()
        schedule.step()
    about = {"source_language": "en", "target_language": "de"}
    save_model(place / "model", CONFIG, model.state_dict(), place, about)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its `model` was trained for some seconds, so that it says many different things, and is sure of few."""
    place = tmp_path_factory.mktemp("export")
    train(place, list(phrasebook_pairs("en", "de", "train", STEPS * SENTENCES)), STEPS, SENTENCES)
    return place


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SentencePair]]:
    """Its `model` knows these few pairs by heart: each of their tokens is far more probable than any other."""
    place = tmp_path_factory.mktemp("sure")
    pairs = list(phrasebook_pairs("en", "de", "train", 60))
    train(place, pairs, steps=200, sentences=30)
    return place, pairs


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [pair.source for pair in phrasebook_pairs("en", "de", "test", 200)]


@pytest.fixture(scope="module")
def references() -> list[str]:
    return [pair.target for pair in phrasebook_pairs("en", "de", "test", 200)]


def by_ctranslate2(folder: Path, lines: list[str], **search) -> list[str]:
    """Translates as CTranslate2's documentation has it."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    translator = ctranslate2.Translator(str(folder), intra_threads=1)
    found = translator.translate_batch(processor.encode(lines, out_type=str), max_batch_size=64, **search)
    return [processor.decode(one.hypotheses[0]) for one in found]


def agreement(ours: list[str], theirs: list[str]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


@pytest.fixture(scope="module")
def in_ctranslate2(place: Path) -> Path:
    export(place / "model", place / "ct2", Format.ctranslate2)
    return place / "ct2"


@pytest.mark.parametrize("beam", [1, 5])
def test_ctranslate2_says_the_same(
    place: Path, in_ctranslate2: Path, lines: list[str], references: list[str], beam: int
) -> None:
    ours = Translator.load(place / "model", CPU).translate(lines, BeamConfig(beam=beam, length_penalty=0.0))
    # By itself CTranslate2 says at least one token; and with a penalty of 0 alone it ends later than ours does.
    theirs = by_ctranslate2(in_ctranslate2, lines, beam_size=beam, length_penalty=1e-6, min_decoding_length=0)
    assert len(set(ours)) > 150
    assert agreement(ours, theirs) >= 0.99
    bleu = [sacrebleu.corpus_bleu(said, [references]).score for said in (ours, theirs)]
    assert bleu[0] > 20
    assert bleu[1] == pytest.approx(bleu[0], abs=0.1)


def test_ctranslate2_in_int8_is_smaller_and_nearly_the_same(sure: tuple[Path, list[SentencePair]]) -> None:
    """Without VNNI instructions products in int8 are less exact: where two tokens are as probable, either is said."""
    place, pairs = sure
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    export(place / "model", place / "ct2", Format.ctranslate2)
    export(place / "model", place / "int8", Format.ctranslate2, Quantization.int8)
    sizes = [(place / name / "model.bin").stat().st_size for name in ("ct2", "int8")]
    assert sizes[1] < 0.6 * sizes[0]
    assert len(set(targets)) > 50 and by_ctranslate2(place / "ct2", sources, beam_size=1) == targets
    assert agreement(targets, by_ctranslate2(place / "int8", sources, beam_size=1)) >= 0.9


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("positions", [Positions.sinusoidal, Positions.learned])
@pytest.mark.parametrize("d_k", [None, 8])
@torch.no_grad()
def test_ctranslate2_gives_every_token_the_same_probability(
    place: Path, tmp_path: Path, lines: list[str], norm: Norm, positions: Positions, d_k: int | None
) -> None:
    """Of every kind of Transformer, with random weights."""
    shape = {"d_model": 32, "d_ff": 48, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "max_positions": 200}
    config = TransformerConfig(**shape, d_k=d_k, norm=norm, positions=positions)
    tokenizer = Tokenizer.load(place)
    torch.manual_seed(0)
    model = Transformer(config, tokenizer.vocab_size).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(tmp_path / "model", config, model.state_dict(), place, {})
    export(tmp_path / "model", tmp_path / "ct2", Format.ctranslate2)
    sources, targets = tokenizer.encode_arrays(lines[:8]), tokenizer.encode_arrays(lines[8:16])
    found = logits(model, sources, targets).log_softmax(-1)
    expected = found.gather(1, torch.from_numpy(np.concatenate(targets)).long()[:, None]).squeeze(1)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "ct2" / "tokenizer.model"))
    pieces = [processor.encode(part, out_type=str) for part in (lines[:8], lines[8:16])]
    scores = ctranslate2.Translator(str(tmp_path / "ct2"), intra_threads=1).score_batch(*pieces)
    theirs = torch.tensor([probability for one in scores for probability in one.log_probs])
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def in_huggingface(place: Path) -> Path:
    export(place / "model", place / "hf", Format.huggingface)
    return place / "hf"


@pytest.mark.parametrize("beam", [1, 4])
def test_hugging_face_says_the_same(place: Path, in_huggingface: Path, lines: list[str], beam: int) -> None:
    ours = Translator.load(place / "model", CPU).translate(lines, BeamConfig(beam=beam, length_penalty=0.0))
    tokenizer = AutoTokenizer.from_pretrained(in_huggingface)
    marian = MarianMTModel.from_pretrained(in_huggingface)
    # Its limit is one for all sentences, ours counts from the source: so a sentence without an end ends elsewhere.
    search = {"num_beams": beam, "max_new_tokens": 100} | ({"length_penalty": 0.0} if beam > 1 else {})
    found = marian.generate(**tokenizer(lines, return_tensors="pt", padding=True), **search)
    theirs = tokenizer.batch_decode(found, skip_special_tokens=True)
    assert agreement(ours, theirs) >= 0.98


def test_a_pre_norm_model_becomes_pegasus_and_says_the_same(place: Path, tmp_path: Path, lines: list[str]) -> None:
    """The model of experiment=multi30k_en_de is pre-norm."""
    config = TransformerConfig(d_model=32, d_ff=48, num_heads=4, encoder_layers=2, decoder_layers=1, norm=Norm.pre)
    torch.manual_seed(0)
    model = Transformer(config, Tokenizer.load(place).vocab_size)
    with torch.no_grad():  # else a random model with a tied output says its last token for ever
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (1.0 if parameter.dim() == 1 else 0.5 * 32**-0.5))
    about = {"source_language": "en", "target_language": "de"}
    save_model(tmp_path / "model", config, model.state_dict(), place, about)
    export(tmp_path / "model", tmp_path / "hf", Format.huggingface)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    assert type(theirs).__name__ == "PegasusForConditionalGeneration"
    ours = Tokenizer.load(place)
    assert tokenizer(lines[:50])["input_ids"] == ours.encode(lines[:50])
    sources, targets = (ours.encode_arrays(some) for some in (lines[:8], lines[8:16]))
    with torch.no_grad():
        expected = logits(model.eval(), sources, targets).split([len(target) for target in targets])
        for source, target, mine in zip(sources, targets, expected, strict=True):
            read = torch.tensor([[BOS_ID, *target[:-1]]])
            told = theirs(input_ids=torch.tensor([[*source]]), decoder_input_ids=read).logits[0]
            torch.testing.assert_close(told, mine, rtol=0, atol=1e-4)
            assert told.std() > 0.3


ODD_LINES = [
    "Zoë sagt: „½ ☃“.",
    "two  spaces",
    " at both ends ",
    "</s> is text",
    "<unk>",
    "x" * 300,
    "naïve\u00a0?",
    "🙂",
]


def test_the_exported_tokenizers_give_the_same_ids(
    place: Path, in_ctranslate2: Path, in_huggingface: Path, lines: list[str]
) -> None:
    ours = Tokenizer.load(place)
    check_tokenizers(ours, in_ctranslate2, in_huggingface, [*lines, *ODD_LINES])


def test_the_exported_tokenizers_give_the_same_ids_of_real_text(
    corpora: Path, place: Path, in_ctranslate2: Path, in_huggingface: Path
) -> None:
    files = ["europarl-en-de-20k/test.de", "tatoeba-en-fr/test.fr", "multi30k/test_2016_flickr.en"]
    text = "\n".join((corpora / name).read_bytes().decode() for name in files)
    check_tokenizers(Tokenizer.load(place), in_ctranslate2, in_huggingface, text.split("\n")[::7])


def check_tokenizers(ours: Tokenizer, in_ctranslate2: Path, in_huggingface: Path, lines: list[str]) -> None:
    theirs = AutoTokenizer.from_pretrained(in_huggingface)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(in_ctranslate2 / MODEL_FILE))
    ids = ours.encode(lines)
    assert theirs(lines)["input_ids"] == ids
    assert processor.encode(lines, add_eos=True) == ids
    assert theirs.batch_decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert theirs.convert_ids_to_tokens(range(4)) == ["<pad>", "<unk>", "<s>", "</s>"]


def test_what_is_there_is_not_written_over(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match="is there already"):
        export(place / "model", tmp_path, Format.ctranslate2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("to", Format)
def test_a_refused_export_leaves_nothing(place: Path, tmp_path: Path, to: Format) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't write"):
        export(place / "model", tmp_path / "file" / "folder", to)
    config = TransformerConfig(d_model=8, d_ff=8, num_heads=2, positions=Positions.learned)
    save_model(tmp_path / "model", config, Transformer(config, 600).state_dict(), place, {})
    if to is Format.huggingface:
        with pytest.raises(UserError, match=r"^format=huggingface: .* not learned positions"):
            export(tmp_path / "model", tmp_path / "folder", to)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "model"}


@pytest.mark.parametrize("to", Format)
@pytest.mark.parametrize(
    ("config", "what"),
    [
        (RecurrentConfig(d_model=8), "a Transformer"),
        (TransformerConfig(d_model=8, num_heads=2, positions=Positions.rotary), "the paper's layers"),
        (TransformerConfig(d_model=8, num_heads=2, key_value_heads=1), "the paper's layers"),
        (TransformerConfig(d_model=8, num_heads=2, bias=False), "the paper's layers"),
        (TransformerConfig(d_model=8, num_heads=2, positions=Positions.alibi), "the paper's layers"),
        (TransformerConfig(d_model=8, num_heads=2, attention=Attention.window), "the paper's layers"),
    ],
    ids=["recurrent", "rotary", "grouped", "no bias", "alibi", "window"],
)
def test_what_the_formats_do_not_have_is_refused(
    place: Path, tmp_path: Path, to: Format, config: ModelConfig, what: str
) -> None:
    weights = build_model(config, Tokenizer.load(place).vocab_size).state_dict()
    save_model(tmp_path / "model", config, weights, place, {})
    with pytest.raises(UserError, match=f"only {what} can be exported"):
        export(tmp_path / "model", tmp_path / "folder", to)


def test_int8_is_ctranslate2s_alone(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quantization=int8: only format=ctranslate2"):
        export(place / "model", tmp_path / "folder", Format.huggingface, Quantization.int8)


@pytest.mark.parametrize(("to", "package"), [("ctranslate2", "ctranslate2"), ("huggingface", "transformers")])
def test_a_missing_package_is_named(place: Path, tmp_path: Path, monkeypatch, capsys, to: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(place / "model"), str(tmp_path / "out"), f"format={to}"]) == 2
    said = capsys.readouterr().err
    assert f"format={to} needs the package {package}" in said
    assert f"pip install {package}" in said
    assert not (tmp_path / "out").exists()
