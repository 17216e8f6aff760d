"""Laws of sampling, on a model small enough to be run without a cache."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from language_toys import ByteTokenizer, ToyModel
from scipy import stats

from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.sample import SampleConfig, choose, draw_noise, sample, truncate

VOCAB, END = 12, 11
PROMPTS = [np.array(ids, dtype=np.int32) for ids in ([1, 2, 3], [4], [], [5, 6, 7, 8, 9, 1, 2], [2, 2], [4])]


def plain_distribution(logits: np.ndarray, config: SampleConfig) -> np.ndarray:
    """The distribution that a token is drawn from, one step after the other."""
    weights = np.exp((logits - logits.max()) / config.temperature)
    probabilities = weights / weights.sum()
    order = sorted(range(len(logits)), key=lambda i: (-probabilities[i], i))
    if config.top_k:
        order = order[: config.top_k]
    total, nucleus, mass = sum(probabilities[order]), [], 0.0
    for i in order:
        nucleus.append(i)
        mass += probabilities[i] / total
        if config.top_p < 1 and mass >= config.top_p - 1e-9:
            break
    kept = np.zeros(len(logits))
    kept[nucleus] = probabilities[nucleus]
    return kept / kept.sum()


def plain_sample(model: ToyModel, prompt: np.ndarray, number: int, which: int, config: SampleConfig):
    """A sample by itself, every token with a pass over the whole text."""
    ids = prompt.tolist() or [END]
    start, log_probability = len(ids), 0.0
    uniforms = draw_noise(config.seed, number, which, config.max_new_tokens)
    for uniform in uniforms:
        if model.config.max_positions is not None and len(ids) == model.config.max_positions:
            return ids[start:], log_probability, "context"
        logits = model.next_logits(ids).double().numpy()
        if config.temperature == 0:
            token = int(logits.argmax())
        else:
            distribution = plain_distribution(logits, config)
            token = int(np.searchsorted(distribution.cumsum(), uniform, side="right"))
        log_probability += logits[token] - np.logaddexp.reduce(logits)
        if token == END:
            return ids[start:], log_probability, "end"
        ids.append(token)
    return ids[start:], log_probability, "length"


SETTINGS = [
    SampleConfig(max_new_tokens=12, samples=3, batch_size=4),
    SampleConfig(max_new_tokens=12, temperature=0.6, seed=7, samples=2, batch_size=100),
    SampleConfig(max_new_tokens=9, temperature=1.5, top_k=4, samples=2, batch_size=1),
    SampleConfig(max_new_tokens=12, top_p=0.7, samples=2, batch_size=5),
    SampleConfig(max_new_tokens=12, temperature=2.0, top_k=8, top_p=0.5, samples=2, batch_size=3, seed=2**64 - 1),
    SampleConfig(max_new_tokens=12, temperature=0, batch_size=2),
]


@pytest.mark.parametrize("config", SETTINGS)
def test_batched_and_cached_equals_one_by_one_without_a_cache(config: SampleConfig) -> None:
    model = ToyModel(VOCAB, max_positions=14)
    results = sample(model, PROMPTS, config, END)
    assert [len(samples) for samples in results] == [config.samples] * len(PROMPTS)
    for number, samples in enumerate(results):
        for which, generated in enumerate(samples):
            tokens, log_probability, reason = plain_sample(model, PROMPTS[number], number, which, config)
            assert (generated.tokens, generated.reason) == (tokens, reason)
            assert generated.log_probability == pytest.approx(log_probability, abs=1e-4)


def test_the_settings_above_meet_every_way_to_end() -> None:
    model = ToyModel(VOCAB, max_positions=14)
    reasons = {one.reason for config in SETTINGS for some in sample(model, PROMPTS, config, END) for one in some}
    assert reasons == {"end", "length", "context"}


def test_a_sample_depends_on_seed_and_numbers_and_prompt_alone() -> None:
    model = ToyModel(VOCAB)
    config = SampleConfig(max_new_tokens=10, samples=4, seed=3)
    whole = sample(model, PROMPTS, config, END)
    for batch_size in (1, 3, 24):
        assert sample(model, PROMPTS, dataclasses.replace(config, batch_size=batch_size), END) == whole
    # Fewer samples are the first ones; a part of the prompts is that part, whatever stands around it.
    fewer = sample(model, PROMPTS, dataclasses.replace(config, samples=2), END)
    assert fewer == [samples[:2] for samples in whole]
    assert sample(model, PROMPTS[3:5], config, END, first_prompt=3) == whole[3:5]
    changed = [PROMPTS[0][::-1].copy(), PROMPTS[1], *PROMPTS[2:]]
    assert sample(model, changed, config, END)[1:] == whole[1:]
    # A shorter sample is the beginning of a longer one.
    shorter = sample(model, PROMPTS, dataclasses.replace(config, max_new_tokens=4), END)
    assert [one.tokens for some in shorter for one in some] == [one.tokens[:4] for some in whole for one in some]


def test_samples_of_one_prompt_and_equal_prompts_and_seeds_differ() -> None:
    model = ToyModel(VOCAB)
    config = SampleConfig(max_new_tokens=20, samples=5, temperature=2.0)
    results = sample(model, PROMPTS, config, END)
    other_seed = sample(model, PROMPTS, dataclasses.replace(config, seed=1), END)
    texts = [tuple(one.tokens) for some in (*results, *other_seed) for one in some if len(one.tokens) > 5]
    assert len(set(texts)) == len(texts) > 20
    assert np.array_equal(PROMPTS[1], PROMPTS[5]) and results[1] != results[5]


@pytest.mark.parametrize("change", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}, {"temperature": 0}])
def test_what_equals_greedy(change: dict) -> None:
    model = ToyModel(VOCAB)
    config = SampleConfig(max_new_tokens=15, **change)
    results = sample(model, PROMPTS, config, END)
    for prompt, (generated,) in zip(PROMPTS, results, strict=True):
        ids = prompt.tolist() or [END]
        start = len(ids)
        while len(ids) - start < 15 and (token := int(model.next_logits(ids).argmax())) != END:
            ids.append(token)
        assert generated.tokens == ids[start:]


def test_finished_rows_leave_the_batch_and_a_prompt_is_read_once() -> None:
    model = ToyModel(VOCAB)
    config = SampleConfig(max_new_tokens=30, samples=10, batch_size=100)
    results = sample(model, PROMPTS[:3], config, END)
    lengths = [len(one.tokens) for some in results for one in some]
    assert model.sizes[0] == 3
    # A row is stepped once for each of its tokens, but for the last where the limit ends it.
    assert (
        model.sizes[1:]
        == [sum(length > step for length in lengths) for step in range(max(lengths))][: len(model.sizes) - 1]
    )
    assert model.sizes[1:] == sorted(model.sizes[1:], reverse=True) and model.sizes[-1] < 30


def test_many_draws_have_the_distribution() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    config = SampleConfig(temperature=1.3, top_k=9, top_p=0.9)
    draws = torch.from_numpy(draw_noise(0, 0, 0, 1_000_000))
    counts = np.zeros(VOCAB)
    for part in draws.split(100_000):
        counts += np.bincount(choose(logits.expand(len(part), -1), part, config)[0].numpy(), minlength=VOCAB)
    expected = plain_distribution(logits[0].double().numpy(), config)
    assert counts[expected == 0].sum() == 0 and 2 < (expected > 0).sum() < VOCAB
    assert stats.chisquare(counts[expected > 0], 1e6 * expected[expected > 0]).pvalue > 0.001


def test_first_tokens_of_many_samples_have_the_distribution() -> None:
    model = ToyModel(VOCAB)
    config = SampleConfig(max_new_tokens=1, samples=20_000, batch_size=20_000)
    (samples,) = sample(model, [np.array([3, 1])], config, END)
    counts = np.bincount([one.tokens[0] if one.tokens else END for one in samples], minlength=VOCAB)
    expected = model.next_logits([3, 1]).double().softmax(-1).numpy()
    assert stats.chisquare(counts, 20_000 * expected / expected.sum()).pvalue > 0.001


@pytest.mark.parametrize("size", [3, 40, 3000])
@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_top_k_and_top_p_keep_exactly_what_a_plain_implementation_keeps(size: int, scale: float) -> None:
    generator = np.random.default_rng(size)
    logits = (scale * generator.standard_normal((5, size))).round(1)  # rounded: with equal ones
    for top_k, top_p in ((0, 0.5), (0, 0.93), (2, 1.0), (7, 0.8), (size, 0.99), (10 * size, 0.2), (600, 0.9999)):
        config = SampleConfig(temperature=0.9, top_k=top_k, top_p=top_p)
        weights = (torch.from_numpy(logits) / 0.9).softmax(-1)
        kept = truncate(weights, top_k, top_p)
        for row, expected in zip(kept / kept.sum(-1, keepdim=True), logits, strict=True):
            np.testing.assert_allclose(row.numpy(), plain_distribution(expected, config), atol=1e-12)


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    edges = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    tokens, log_probabilities = choose(logits.expand(3, -1), edges, SampleConfig())
    assert tokens.tolist() == [1, 3, 3]
    assert log_probabilities.tolist() == pytest.approx([-math.log(2)] * 3)


def test_a_prompt_longer_than_the_context_is_refused_by_name_with_both_lengths() -> None:
    model = ToyModel(VOCAB, max_positions=6)
    with pytest.raises(UserError, match=r"^prompt 4: .*\b7 tokens.*\b6\b"):
        sample(model, PROMPTS, SampleConfig(), END)
    with pytest.raises(UserError, match=r"^prompts\.txt, line 9:"):
        sample(model, PROMPTS, SampleConfig(), END, names=["a", "b", "c", "prompts.txt, line 9", "e", "f"])
    assert model.sizes == []


def test_prompt_and_new_tokens_fill_the_context_and_no_more() -> None:
    model = ToyModel(VOCAB, max_positions=7)
    config = SampleConfig(max_new_tokens=5, top_k=1, samples=2)
    results = sample(model, PROMPTS, config, end_of_text=-1)
    assert [[(len(one.tokens), one.reason) for one in some] for some in results] == [
        [(4, "context")] * 2,
        [(5, "length")] * 2,
        [(5, "length")] * 2,
        [(0, "context")] * 2,
        [(5, "length")] * 2,
        [(5, "length")] * 2,
    ]


def test_a_model_of_any_length_has_no_full_context() -> None:
    (generated,) = sample(ToyModel(VOCAB, max_positions=None), [np.array([1])], SampleConfig(max_new_tokens=80), -1)[0]
    assert (len(generated.tokens), generated.reason) == (80, "length")


def test_tokens_are_told_as_they_come() -> None:
    events = []
    config = SampleConfig(max_new_tokens=6, samples=2, batch_size=3)
    results = sample(
        ToyModel(VOCAB), PROMPTS, config, END, on_tokens=lambda *event: events.append(event), first_prompt=40
    )
    for number, samples in enumerate(results):
        for which, generated in enumerate(samples):
            assert [token for prompt, n, token in events if (prompt, n) == (40 + number, which)] == generated.tokens


def test_a_stop_string_across_tokens_ends_a_sample_and_only_that() -> None:
    tokenizer, model = ByteTokenizer(), ToyModel()
    config = SampleConfig(max_new_tokens=40, samples=3, temperature=1.5)
    prompts = tokenizer.encode(["To be", "or not"])
    free = sample(model, prompts, config, tokenizer.end_of_text, tokenizer.decode)
    target = next(one for one in free[1] if len(one.tokens) > 20)
    stop = next(target.text[i : i + 2] for i in range(5, 30) if target.text[i : i + 2].isascii())
    stopped = sample(
        model, prompts, dataclasses.replace(config, stop=("never, ever", stop)), tokenizer.end_of_text, tokenizer.decode
    )
    assert any(one.reason == "stop" for some in stopped for one in some)
    for without, with_stop in zip([*free[0], *free[1]], [*stopped[0], *stopped[1]], strict=True):
        if stop in without.text:
            assert with_stop.reason == "stop"
            assert with_stop.text == without.text[: without.text.index(stop)]
            assert with_stop.tokens == without.tokens[: len(with_stop.tokens)]
            assert tokenizer.decode(with_stop.tokens).endswith(stop)
        else:
            assert with_stop == without


def test_logits_that_are_not_finite_are_the_users_to_mend() -> None:
    model = ToyModel(VOCAB)
    with torch.no_grad():
        model.output[3] = math.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match=r"precision="):
            sample(model, PROMPTS, SampleConfig(temperature=temperature), END)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("max_new_tokens", 0),
        ("samples", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", "\n"),
        ("stop", ("a", "")),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        SampleConfig(**{field: value})


def test_stop_strings_without_a_decoder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^stop:"):
        sample(ToyModel(VOCAB), PROMPTS, SampleConfig(stop=("a",)), END)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_ids_that_the_tokenizer_does_not_know_are_never_drawn(temperature: float, top_p: float) -> None:
    """The others keep their odds; log-probabilities stay the model's own."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, VOCAB, generator=generator)
    logits[:, 9:] += 20
    uniforms = torch.rand(50, generator=generator, dtype=torch.float64)
    config = SampleConfig(temperature=temperature, top_p=top_p)
    tokens, scores = choose(logits, uniforms, config, vocab_size=9)
    assert torch.equal(tokens, choose(logits[:, :9], uniforms, config)[0])
    assert torch.equal(scores, logits.double().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1))
    model = ToyModel(VOCAB)
    with torch.no_grad():
        model.output[5:] *= 10
    samples = sample(model, PROMPTS, SampleConfig(max_new_tokens=20, seed=1), END, vocab_size=5)
    assert {token for some in samples for one in some for token in one.tokens} <= set(range(5))
