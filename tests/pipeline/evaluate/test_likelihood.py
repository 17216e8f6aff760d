"""Log-probabilities equal those of one pass for each token, whatever the batch and the window."""

import math

import numpy as np
import pytest
import torch
from language_toys import ByteTokenizer, ToyModel

import transloom.pipeline.evaluate.likelihood
from transloom.pipeline.evaluate.likelihood import Passage, log_probabilities, score_text, total_score

END = ByteTokenizer.end_of_text
DOCUMENTS = ["The quick brown fox jumps over it.", "", "é", "a" * 17, "To be, or not to be: that is the question"]


def plain(model: ToyModel, before: list[int], label: int) -> float:
    return float(model.next_logits(before).double().log_softmax(-1)[label])


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_passages_equal_one_by_one_whatever_the_batch(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transloom.pipeline.evaluate.likelihood, "ROWS", 5)
    model, generator = ToyModel(20), np.random.default_rng(0)
    passages = []
    for length in (3, 9, 1, 9, 4):
        asked = int(generator.integers(1, length + 1))
        passages.append(Passage(generator.integers(0, 20, length), generator.integers(0, 20, asked)))
    results = log_probabilities(model, passages, batch_tokens)
    for passage, scores in zip(passages, results, strict=True):
        inputs, skipped = passage.inputs.tolist(), len(passage.inputs) - len(passage.labels)
        expected = [plain(model, inputs[: skipped + i + 1], label) for i, label in enumerate(passage.labels)]
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(None, None), (8, 8), (8, 1), (8, 3), (1, 1), (64, 64)])
def test_every_token_of_a_document_is_counted_once_in_its_window(window: int | None, stride: int | None) -> None:
    model, tokenizer = ToyModel(max_positions=64), ByteTokenizer()
    scores = score_text(model, tokenizer, DOCUMENTS, stride, window)
    size, step = window or 64, stride or 32
    for document, score in zip(DOCUMENTS, scores, strict=True):
        ids = [END, *document.encode()]
        total = 0.0
        for place in range(1, len(ids)):
            # The window that counts the token: the first one ends at `size`, the others `step` tokens apart.
            behind = math.ceil(max(0, place - size) / step)
            end = min(len(ids) - 1, size + behind * step)
            total += plain(model, ids[max(0, end - size) : place], ids[place])
        assert score.log_probability == pytest.approx(total, abs=1e-4)
        assert score.tokens == score.bytes == len(document.encode())


def test_bits_per_byte_weigh_each_byte_alike() -> None:
    model = ToyModel()
    with torch.no_grad():
        model.output.zero_()  # all 257 symbols are as likely
    scores = score_text(model, ByteTokenizer(), DOCUMENTS)
    assert math.isnan(scores[1].bits_per_byte) and scores[1].log_probability == 0
    assert scores[2].bits_per_byte == pytest.approx(math.log2(257))
    assert total_score(scores).bits_per_byte == pytest.approx(math.log2(257))
    assert total_score(scores).bytes == sum(len(text.encode()) for text in DOCUMENTS)


def test_a_model_of_any_length_reads_whole_documents() -> None:
    documents = ["x" * 150, "y"]
    (whole, _) = score_text(ToyModel(max_positions=None), ByteTokenizer(), documents)
    (windows, _) = score_text(ToyModel(max_positions=None), ByteTokenizer(), documents, window=150, stride=150)
    assert whole.log_probability == pytest.approx(windows.log_probability, abs=1e-5)
    assert score_text(ToyModel(max_positions=None), ByteTokenizer(), []) == []


@pytest.mark.parametrize(("name", "value"), [("stride", 0), ("stride", 65), ("window", 65), ("window", 0)])
def test_impossible_windows_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}:"):
        score_text(ToyModel(max_positions=64), ByteTokenizer(), DOCUMENTS, **{name: value})


def test_an_unknown_symbol_costs_which_character_it_stands_for() -> None:
    class Few(ByteTokenizer):
        """Knows no "e"."""

        unknown, unknown_bits = ord("e"), 20.0

    texts = ["The end", "is not", ""]
    plain_scores = score_text(ToyModel(), ByteTokenizer(), texts)
    scores = score_text(ToyModel(), Few(), texts)
    assert [score.log_probability for score in scores] == [score.log_probability for score in plain_scores]
    assert scores[0].bits_per_byte == pytest.approx(plain_scores[0].bits_per_byte + 2 * 20 / 7)
    assert scores[1].bits_per_byte == plain_scores[1].bits_per_byte
    assert total_score(scores).bits_per_byte == pytest.approx(total_score(plain_scores).bits_per_byte + 2 * 20 / 13)
