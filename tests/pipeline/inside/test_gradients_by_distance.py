"""The gradient at a distance: what it is, how far a window lets it reach, and the fitted rate."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from inside_toys import Rows

from transloom.model.config import Attention, DecoderConfig
from transloom.model.decoder_only import DecoderOnly
from transloom.model.packing import Layout
from transloom.model.recurrent_decoder import RecurrentDecoder, RecurrentDecoderConfig
from transloom.pipeline.data.prompt_batches import PromptExamples, Room, collate_prompts
from transloom.pipeline.data.prompts import TooLong
from transloom.pipeline.inside.examples import Sample
from transloom.pipeline.inside.gradient import GradientByDistance, gradient_by_distance
from transloom.pipeline.train.objective import ResponseObjective

VOCAB, END = 12, 11


class Task:
    collate = staticmethod(collate_prompts)

    def objective(self, model: Any) -> ResponseObjective:
        return ResponseObjective(model, 0.1)


def sample(length: int = 30, texts: int = 3) -> Sample:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 10, length).tolist() for _ in range(texts)]
    rows = Rows(prompt=prompts, response=[[1, 2, END]] * texts)
    examples = PromptExamples(rows, Room(None, 9, TooLong.cut_left, 0), END, True, True)
    return Sample(cast(Any, Task()), examples, np.arange(texts))


def transformer(**settings: Any) -> DecoderOnly:
    torch.manual_seed(0)
    return DecoderOnly(DecoderConfig(**{"layers": 1, **settings}, d_model=16, d_ff=16, num_heads=2, dropout=0.0), VOCAB)


def lstm() -> RecurrentDecoder:
    torch.manual_seed(0)
    return RecurrentDecoder(RecurrentDecoderConfig(16, 2, dropout=0.0), VOCAB)


@pytest.mark.parametrize("make", [transformer, lstm])
def test_it_is_the_gradient_of_the_last_loss_in_each_embedding(make: Any) -> None:
    model = make().eval()
    result = gradient_by_distance(model, sample(texts=1))
    # A token that stands once has an embedding of its own: all rows of the text are made different.
    tokens = torch.from_numpy(sample(texts=1).examples.get("text", 0).astype(np.int64))
    expected = []
    for place in range(len(tokens)):
        apart = torch.nn.Embedding(VOCAB + 1, 16)
        with torch.no_grad():
            apart.weight[:VOCAB] = model.embedding.weight
            apart.weight[VOCAB] = model.embedding.weight[tokens[place]]
        output, model.embedding = model.output_weight.detach().clone(), apart
        changed = tokens.clone()
        changed[place] = VOCAB
        hidden = model(changed, Layout.of(torch.tensor([len(tokens)])))
        # The text is a prompt and 1, 2; the position of 1 predicts the last token before the end of text.
        torch.nn.functional.cross_entropy(hidden[-2] @ output.T, torch.tensor(2)).backward()
        assert apart.weight.grad is not None
        expected.append(float(apart.weight.grad[VOCAB].norm()))
        model.embedding = torch.nn.Embedding.from_pretrained(apart.weight.detach()[:VOCAB], freeze=False)
    np.testing.assert_allclose(result.norms, expected[-2::-1], rtol=1e-4, atol=1e-12)
    assert expected[-1] == 0


def test_a_window_ends_it() -> None:
    model = transformer(attention=Attention.window, window=6).eval()
    norms = gradient_by_distance(model, sample()).norms
    assert len(norms) == 31
    assert (norms[:6] > 0).all() and (norms[6:] == 0).all()


def test_the_rate_of_an_exponential_and_of_none() -> None:
    distances = np.arange(300)
    falling = GradientByDistance(3.0 * np.exp(-0.04 * distances))
    assert falling.rate == pytest.approx(0.04)
    assert falling.spread > 1e4
    flat = GradientByDistance(np.where(distances < 10, 100.0, 0.5))  # what is near does not count
    assert flat.rate == pytest.approx(0.0, abs=1e-9) and flat.spread == pytest.approx(1.0)
    assert flat.distances == [1, 2, 5, 10, 20, 50, 100, 200, 299]
    gone = GradientByDistance(np.where(distances < 150, np.exp(-0.3 * distances), 0.0))  # lost in fp32
    assert gone.rate == pytest.approx(0.3)
    assert gone.spread == float("inf") and np.isnan(GradientByDistance(np.zeros(300)).spread)
