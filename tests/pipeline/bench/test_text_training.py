"""The contenders of a language model's training: the same tokens, the same model, the same weights."""

from dataclasses import replace
from itertools import islice
from typing import cast

import numpy as np
import pytest
import torch

from transloom.model.config import Activation, DecoderConfig, Normalization, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.model.packing import Layout
from transloom.pipeline.bench.nanogpt import GPT, copy_weights
from transloom.pipeline.bench.report import BARE, HUGGINGFACE, NANOGPT, Spread, summarise_training, training_ratios
from transloom.pipeline.bench.task import Kind, Ready, Task, initial_model
from transloom.pipeline.bench.text_steps import dense_steps, text_steps
from transloom.pipeline.bench.training import make_member
from transloom.pipeline.bench.turns import Rounds, Turn
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, HeldOutConfig, SourceConfig
from transloom.pipeline.data.prepare_documents import prepare_documents
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.train.optimizer import OptimizerConfig

GPT2 = DecoderConfig(layers=2, d_model=32, d_ff=64, num_heads=4, dropout=0.0, max_positions=32)
LLAMA = replace(
    GPT2,
    key_value_heads=2,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    positions=Positions.rotary,
    bias=False,
    tied=False,
)
SHAPES = pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "llama"])


@pytest.fixture(scope="module")
def text_task(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Task:
    folder = tmp_path_factory.mktemp("text")
    for number in range(80):
        (folder / f"{number:02}.txt").write_text(
            f"Text {number}. " + f"It has {number} words and more. " * (number % 5)
        )
    corpus = DocumentsConfig(
        kind=DocumentsKind.text,
        name="own",
        train=SourceConfig(text=str(folder / "*.txt")),
        held_out=HeldOutConfig(validation=0.1, test=0.1),
    )
    prepared = prepare_documents(corpus, TextTokenizerConfig(vocab_size=300), folder / "outputs")
    counts = prepared.tokenizer.manifest["counts"]
    return replace(
        task,
        model=GPT2,
        batch=BatchConfig(256, 128),
        optimizer=OptimizerConfig(weight_decay=0.1, clip_norm=1.0),
        label_smoothing=0.0,
        shards=str(prepared.shards.folder),
        vocab_size=counts["vocab_size"],
        end_of_text=counts["end_of_text"],
    )


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_dense_windows_hold_the_tokens_of_ours_in_their_order_without_padding(text_task: Task) -> None:
    count = 40  # goes into another epoch
    ours = list(islice(text_steps(text_task), count))
    dense = list(islice(dense_steps(text_task), count))
    assert ours[-1].epoch > 0
    labels = torch.cat([batch.labels for step in ours for batch in step.batches])
    inputs = torch.cat([batch.tokens[: len(batch.labels)] for step in ours for batch in step.batches])
    batches = [batch for step in dense for batch in step.batches]
    assert {batch.labels.shape[1] for batch in batches} == {32}
    read = torch.cat([batch.labels.flatten() for batch in batches])
    assert torch.equal(read, labels[: len(read)])
    assert torch.equal(torch.cat([batch.tokens.flatten() for batch in batches]), inputs[: len(read)])
    behind = np.cumsum([step.loss_count for step in ours]) - np.cumsum([step.loss_count for step in dense])
    assert behind.min() >= 0 and behind.max() < 32
    assert all(step.loss_count == sum(batch.labels.numel() for batch in step.batches) for step in dense)
    assert {len(step.batches) for step in dense} == {2}


@SHAPES
def test_the_plain_model_equals_ours_with_the_same_weights(text_task: Task, shape: DecoderConfig) -> None:
    ours = cast(DecoderOnly, initial_model(replace(text_task, model=shape))).double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # biases and normalisations of other than zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = GPT(shape, text_task.vocab_size).double().eval()
    copy_weights(ours, plain)
    assert sum(one.numel() for one in plain.parameters()) == sum(one.numel() for one in ours.parameters())
    tokens = torch.randint(0, text_task.vocab_size, (3, 32))
    expected = ours.logits(ours(tokens.flatten(), Layout.of(torch.tensor([32] * 3))))
    torch.testing.assert_close(plain(tokens).flatten(0, 1), expected, rtol=0, atol=1e-5)  # angles are in fp32


@pytest.mark.parametrize("kind", [Kind.nanogpt, Kind.huggingface])
@SHAPES
@pytest.mark.usefixtures("one_thread")
def test_all_read_as_many_tokens_and_learn(text_task: Task, shape: DecoderConfig, kind: Kind) -> None:
    if kind is Kind.huggingface:
        pytest.importorskip("transformers")
    task = replace(text_task, model=shape)
    ours, _ = make_member(task)
    other, _ = make_member(replace(task, kind=kind))
    for number in range(2):
        burst, others = ours(6), other(6)
        assert burst is not None and others is not None
        assert (others.source_tokens, burst.source_tokens) == (0, 0)
        assert abs(others.target_tokens - burst.target_tokens) < 32
        losses = [one.loss / one.target_tokens for one in (burst, others)]
        # Windows begin elsewhere than pieces do, and see neighbours
        assert losses[1] == pytest.approx(losses[0], rel=0.02 if number == 0 else 0.05)


@pytest.mark.usefixtures("one_thread")
def test_both_peers_take_the_same_steps(text_task: Task) -> None:
    pytest.importorskip("transformers")
    one, _ = make_member(replace(text_task, kind=Kind.nanogpt))
    other, _ = make_member(replace(text_task, kind=Kind.huggingface))
    for _ in range(3):
        burst, others = one(4), other(4)
        assert burst is not None and others is not None
        assert burst.target_tokens == others.target_tokens
        assert others.loss == pytest.approx(burst.loss, rel=1e-4)


def turn(tokens: int, seconds: float) -> Turn:
    return Turn(10, seconds, 0, tokens, 5.0, seconds, 0.0, 0.0, 100, 0)


def test_ratios_are_of_tokens_per_second() -> None:
    turns = {
        BARE: [turn(1000, 1.0), turn(1000, 1.0)],
        NANOGPT: [turn(960, 2.0), turn(1024, 2.0)],
        HUGGINGFACE: [turn(960, 1.6), turn(1024, 1.6)],
    }
    rounds = Rounds(turns, [1e9])
    ready = {name: [Ready(1, 10)] for name in turns}
    found = {one.what: one for one in training_ratios(rounds, is_fp32=True)}
    over_loop = found[f"target tokens/s: {BARE} / {NANOGPT}"]
    assert over_loop.value == pytest.approx(1000 / 496) and over_loop.goal == 1.2
    assert over_loop.spread == Spread(
        *[pytest.approx(x) for x in ((1000 / 512 + 1000 / 480) / 2, 1000 / 512, 1000 / 480)]
    )  # type: ignore
    best = next(one for what, one in found.items() if "best of the others, Hugging Face" in what)
    assert best.value == pytest.approx(1.6 * 1000 / 992)
    row = summarise_training(rounds, ready, GPT2, 300)["contenders"][BARE]
    assert row["target_tokens_per_second"]["median"] == 1000 and row["model_flops_per_second"]["median"] > 0
