"""What a translator makes of a line: n-best lists, prefixes, terms, samples, alignments, ensembles, parts."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_translator import LSTM, TRANSFORMER, make_model, make_tokenizer

from transloom.model.packing import Layout
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.align import align_words, alignment_layer, attention_of, pharaoh
from transloom.pipeline.generate.beam import BeamConfig, length_penalty
from transloom.pipeline.generate.decoding import sample_tokens, search_tokens
from transloom.pipeline.generate.ensemble import Ensemble
from transloom.pipeline.generate.sample import SampleConfig
from transloom.pipeline.generate.translator import Split, TranslateConfig, Translator
from transloom.pipeline.translate import Terminology
from transloom.pipeline.translate import Translator as Public

CPU = torch.device("cpu")
TEXT = ["Der Hund Nummer 3", "", "läuft", "Haus 7 Haus 8 Haus 9", "   ", "Der Hund läuft zum Haus 14."]
SEARCH = BeamConfig(beam=4, extra_tokens=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(root / "tokenizer")
    other = make_tokenizer(root / "other", ["ganz andere Wörter " * 3] * 30)
    return {
        "transformer": make_model(root / "transformer", tokenizer, TRANSFORMER),
        "second": make_model(root / "second", tokenizer, TRANSFORMER, seed=1),
        "lstm": make_model(root / "lstm", tokenizer, LSTM),
        "other": make_model(root / "foreign", other, TRANSFORMER),
    }


@pytest.fixture(scope="module", params=["transformer", "lstm", "ensemble"])
def translator(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Translator:
    if request.param == "ensemble":
        return Translator.load([folders["transformer"], folders["lstm"]], CPU)
    return Translator.load(folders[request.param], CPU)


def log_probability(translator: Translator, source: np.ndarray, tokens: list[int]) -> float:
    """Of a translation, by a teacher-forced pass of each model."""
    written = torch.tensor([*tokens, EOS_ID])
    packed = torch.from_numpy(source.astype(np.int64)), torch.tensor([BOS_ID, *tokens])
    layouts = [Layout.of(torch.tensor([len(ids)])) for ids in packed]
    with torch.inference_mode():
        logits = [
            model(packed[0], layouts[0], packed[1], layouts[1]) @ model.output_weight.T for model in translator.models
        ]
    mean = torch.stack([part.float().softmax(-1) for part in logits]).mean(0)
    return float(mean.log().gather(1, written[:, None]).sum())


def test_the_public_entry_is_the_class() -> None:
    assert Public is Translator


def test_n_best_lists_are_sorted_begin_with_the_best_and_have_their_scores(translator: Translator) -> None:
    lists = translator.translations(TEXT, SEARCH, TranslateConfig(n_best=4))
    assert [len(translations) for translations in lists] == [4, 1, 4, 4, 1, 4]
    assert lists[1][0].text == "" and lists[1][0].score == 0.0
    for translations in lists:
        scores = [translation.score for translation in translations]
        assert scores == sorted(scores, reverse=True)
        for translation in translations:
            penalty = length_penalty(translation.tokens, SEARCH.length_penalty)
            assert translation.score == pytest.approx(translation.log_probability / penalty) or not translation.tokens
    one_by_one = [translator.translations([line], SEARCH, TranslateConfig(n_best=4))[0] for line in TEXT]
    assert [[t.text for t in translations] for translations in one_by_one] == [[t.text for t in ts] for ts in lists]


@pytest.mark.parametrize("names", [["transformer"], ["lstm"], ["transformer", "second", "lstm"]])
def test_a_log_probability_is_the_models_own_and_an_ensembles_of_the_mean(
    folders: dict[str, Path], names: list[str]
) -> None:
    translator = Translator.load([folders[name] for name in names], CPU)
    (source,) = translator.tokenizer.encode_arrays([TEXT[0]])
    (hypotheses,) = search_tokens(Ensemble(translator.models), [source], SEARCH, n_best=3)
    for hypothesis in hypotheses:
        expected = log_probability(translator, source, hypothesis.tokens)
        assert hypothesis.log_probability == pytest.approx(expected, abs=1e-3)


def test_an_ensemble_of_a_model_with_itself_is_the_model(folders: dict[str, Path]) -> None:
    alone = Translator.load(folders["transformer"], CPU).translations(TEXT, SEARCH)
    twice = Translator.load([folders["transformer"]] * 2, CPU).translations(TEXT, SEARCH)
    assert [[t.text for t in ts] for ts in twice] == [[t.text for t in ts] for ts in alone]
    assert twice[0][0].score == pytest.approx(alone[0][0].score, abs=1e-4)


def test_models_of_other_vocabularies_are_no_ensemble(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"foreign has another vocabulary than .*transformer"):
        Translator.load([folders["transformer"], folders["other"]], CPU)


def test_a_prefix_comes_first_and_each_line_has_its_own(translator: Translator) -> None:
    prefixes = ["zum Haus", "x", "", "Der", "", "Nummer 7"]
    texts = [best.text for best, *_ in translator.translations(TEXT, SEARCH, prefixes=prefixes)]
    assert [text.startswith(prefix) for text, prefix in zip(texts, prefixes, strict=True)] == [
        *(True, False, True, True, True, True)
    ]
    assert texts[1] == texts[4] == ""
    assert texts[2] == translator.translate([TEXT[2]], SEARCH)[0]


def test_terms_are_in_the_translation_as_whole_words(translator: Translator) -> None:
    terms = Terminology((("Hund", "Nummer"), ("haus", "Der Hund läuft"), ("Haus 8", "zum Haus")))
    for beam in (1, 4):
        lists = translator.translations(TEXT, replace(SEARCH, beam=beam), terms=terms)
        words = [f" {best.text} " for best, *_ in lists]
        assert " Nummer " in words[0] or " Nummer." in words[0]
        assert "Der Hund läuft" in words[3] and "zum Haus" in words[3], "the longer source term counts where both begin"
        assert "Nummer" in words[5] and "Der Hund läuft" in words[5]
        assert words[2].strip() == translator.translate(TEXT, replace(SEARCH, beam=beam))[2]


def test_a_prefix_or_terms_that_leave_no_room_are_refused_by_line(folders: dict[str, Path]) -> None:
    translator = Translator.load(folders["transformer"], CPU)
    with pytest.raises(UserError, match=r"^line 8: prefix and terms have \d+ tokens"):
        translator.translations(["Hund", "Hund"], SEARCH, prefixes=["", "Hund " * 50], first_line=7)
    terms = Terminology((("Hund", "Haus " * 50),))
    with pytest.raises(UserError, match=r"^line 1: prefix and terms have"):
        translator.translations(["Hund"], SEARCH, terms=terms)


def test_a_sample_depends_on_seed_line_and_number_alone(translator: Translator) -> None:
    config = TranslateConfig(sampling=SampleConfig(samples=3, seed=5, temperature=0.9))
    together = translator.translations(TEXT, SEARCH, config)
    assert [len(translations) for translations in together] == [3, 1, 3, 3, 1, 3]
    one_by_one = [
        translator.translations([line], replace(SEARCH, batch_sentences=1), config, first_line=number)[0]
        for number, line in enumerate(TEXT, start=1)
    ]
    assert [[t.text for t in ts] for ts in one_by_one] == [[t.text for t in ts] for ts in together]
    other = translator.translations(TEXT, SEARCH, replace(config, sampling=SampleConfig(samples=3, seed=6)))
    assert [[t.text for t in ts] for ts in other] != [[t.text for t in ts] for ts in together]
    for translation in together[0]:
        penalty = length_penalty(translation.tokens, SEARCH.length_penalty)
        assert translation.score == pytest.approx(translation.log_probability / penalty)


def test_at_temperature_0_a_sample_is_the_greedy_translation(translator: Translator) -> None:
    greedy = BeamConfig(beam=1, length_penalty=0.0, extra_tokens=5)
    config = TranslateConfig(sampling=SampleConfig(temperature=0.0))
    samples = translator.translations(TEXT, greedy, config)
    searched = translator.translations(TEXT, greedy)
    assert [t.text for (t,) in samples] == [t.text for (t,) in searched]
    assert samples[0][0].log_probability == pytest.approx(searched[0][0].log_probability, abs=1e-3)


def test_samples_are_drawn_by_the_models_probabilities(folders: dict[str, Path]) -> None:
    translator = Translator.load(folders["lstm"], CPU)
    model: Any = translator.model
    (source,) = translator.tokenizer.encode_arrays(["Hund"])
    decoding = model.start_decoding(torch.tensor(source).long(), Layout.of(torch.tensor([len(source)])))
    with torch.inference_mode():
        chances = decoding.step(torch.tensor([BOS_ID]))[0].softmax(-1)
    (samples,) = sample_tokens(model, [source], SEARCH, SampleConfig(samples=500), [(0, 0)])
    firsts = [sample.tokens[0] for sample in samples if sample.tokens]
    likeliest = int(chances.argmax())
    expected = 500 * float(chances[likeliest])
    assert expected > 20 and likeliest != EOS_ID
    assert abs(firsts.count(likeliest) - expected) < 4 * math.sqrt(expected)


def test_a_sample_begins_with_the_prefix(translator: Translator) -> None:
    config = TranslateConfig(sampling=SampleConfig(samples=2))
    (samples,) = translator.translations(["Hund"], SEARCH, config, prefixes=["zum Haus"])
    assert all(sample.text.startswith("zum Haus") for sample in samples)


def test_long_lines_are_translated_in_parts(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    translator = Translator.load(folders["transformer"], CPU)
    first, second = "Der Hund Nummer 3 mag das Quietschen.", "Haus 7 und Haus 8 sind schon Nummer 9."
    (line,) = translator.translations([f"{first} {second}"], SEARCH, TranslateConfig(n_best=2, align=True))
    assert caplog.messages[0].startswith("line 1 has ") and "in 2 parts" in caplog.messages[0]
    parts = translator.translations([first, second], SEARCH, TranslateConfig(n_best=2, align=True))
    for rank in range(2):
        assert line[rank].text == f"{parts[0][rank].text} {parts[1][rank].text}".strip()
        assert line[rank].log_probability == pytest.approx(
            parts[0][rank].log_probability + parts[1][rank].log_probability
        )
    words = len(parts[0][0].text.split(" "))
    moved = [(i + 7, j + words) for i, j in parts[1][0].alignment or []]
    assert line[0].alignment == [*(parts[0][0].alignment or []), *moved]
    caplog.clear()
    cut = translator.translations([f"{first} {second}"], SEARCH, TranslateConfig(split=Split.never))[0][0]
    assert "is cut to the 40" in caplog.text and cut.text != line[0].text
    sentences = translator.translations(["Hund. Haus."], SEARCH, TranslateConfig(split=Split.sentences))[0][0]
    assert sentences.text == " ".join(translator.translate(["Hund.", "Haus."], SEARCH)).strip()


def test_lines_longer_than_any_of_train_are_translated_in_sentences(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    translator = Translator.load(folders["transformer"], CPU)
    text = "Der Hund läuft. Der Hund mag das Haus."
    whole, apart = translator.translate([text], SEARCH), translator.translate(text.split(" ", 3)[3:], SEARCH)
    assert not caplog.messages and translator.longest_trained is None
    trained = replace(translator, about=translator.about | {"longest_trained": 12})
    found = trained.translate([text, "Hund" * 12, "Hund"], SEARCH)
    assert found[0] != whole[0] and found[0].endswith(apart[0])
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "it is translated in 2 parts",
        "its translation may be poor",
    ]
    assert trained.translations([text], SEARCH, TranslateConfig(split=Split.never))[0][0].text == whole[0]


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_attention_in_a_batch_is_that_of_each_pair_alone(folders: dict[str, Path], name: str) -> None:
    translator = Translator.load(folders[name], CPU)
    sources = translator.tokenizer.encode_arrays(["Der Hund", "läuft zum Haus 7.", "Haus"])
    targets = translator.tokenizer.encode_arrays(["zum Haus 8", "Hund", "Der Hund Nummer 3 läuft"])
    together = attention_of(translator.model, sources, targets)
    for weights, source, target in zip(together, sources, targets, strict=True):
        assert weights.shape == (len(target), len(source))
        np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(weights, attention_of(translator.model, [source], [target])[0], rtol=1e-4, atol=1e-6)


def test_words_are_linked_by_the_attention_of_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ["<pad>", "<unk>", "<s>", "</s>", "▁Hund", "▁x", "yz", "▁a", "bc", "▁Haus", "▁"]
    weights = np.zeros((5, 4))
    # The tokens of "abc" see each token of "xyz" less than "Hund", but both together more; </s> most of all.
    weights[1:3] = [0.2, 0.15, 0.15, 0.5]
    weights[3] = [0.9, 0.0, 0.1, 0.0]
    monkeypatch.setattr("transloom.pipeline.generate.align.attention_of", lambda *_: [weights])
    # A space alone is no word, and the end of a sentence has no link.
    assert align_words([None], [np.array([4, 5, 6, 3])], [[10, 7, 8, 9]], pieces) == [[(0, 1), (1, 0)]]
    assert align_words([None], [np.array([4, 5, 6, 3])], [[10, 2]], pieces) == [[]]
    assert pharaoh([(0, 1), (1, 0)]) == "0-1 1-0"


def test_every_word_of_a_translation_has_a_link(translator: Translator) -> None:
    lists = translator.translations(TEXT, SEARCH, TranslateConfig(align=True))
    for line, (best, *_) in zip(TEXT, lists, strict=True):
        assert best.alignment is not None
        assert {j for _, j in best.alignment} == set(range(len(re.findall(r"[^ ]+", best.text))))
        assert all(i < len(line.split()) for i, _ in best.alignment)
    assert translator.translations(["Hund"], SEARCH)[0][0].alignment is None
    links = translator.align(["Der Hund läuft"], ["zum Haus"])[0]
    assert sorted(j for _, j in links) == [0, 1]


def test_the_layer_of_alignments_is_the_last_but_one() -> None:
    assert [alignment_layer(layers) for layers in (1, 2, 3, 6)] == [0, 0, 1, 4]


def test_a_model_without_cross_attention_aligns_nothing(folders: dict[str, Path]) -> None:
    encoder = Transformer(TRANSFORMER, 320).encoder
    with pytest.raises(UserError, match=r"^align: a ModuleList has no attention to the source"):
        attention_of(encoder, [np.array([5, EOS_ID])], [np.array([6, EOS_ID])])


def test_arguments_that_do_not_go_together_are_refused(translator: Translator) -> None:
    for call, name in (
        (lambda: translator.translate("Hund"), "lines"),
        (lambda: translator.translations(["Hund"], prefixes=["a", "b"]), "prefixes"),
        (lambda: translator.align(["Hund"], []), "translations"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            call()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^n_best: "):
        TranslateConfig(n_best=0)
    with pytest.raises(ValueError, match=r"^n_best: "):
        TranslateConfig(n_best=2, sampling=SampleConfig())
