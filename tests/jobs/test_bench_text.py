"""The bench of language models: who takes part, what is refused, prompts, and continuations with the same weights."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from transloom.jobs.__main__ import main
from transloom.jobs.bench import contenders as bench_contenders
from transloom.jobs.bench import text_decoding
from transloom.jobs.config.compose import load_config
from transloom.model.config import Activation, DecoderConfig, Normalization, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.bench.continuations import ContinueTask, Prompts, make_continuer
from transloom.pipeline.bench.picture import draw_bench
from transloom.pipeline.bench.report import BARE, HUGGINGFACE, NANOGPT, TWO, ZERO0, ZERO1
from transloom.pipeline.bench.search import Program
from transloom.pipeline.bench.task import Kind
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, HeldOutConfig, SourceConfig
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prepare_documents import prepare_documents
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.huggingface import write_huggingface
from transloom.pipeline.model_folder import save_model

DEMO = "experiment=language_model/demo"
SHAPE = DecoderConfig(
    layers=2,
    d_model=32,
    d_ff=64,
    num_heads=4,
    key_value_heads=2,
    dropout=0.0,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    positions=Positions.rotary,
    bias=False,
    max_positions=64,
)
REFUSED = {
    f"{DEMO} model.positions=sinusoidal": "model.positions: ",
    f"{DEMO} model.positions=alibi": "model.positions: ",
    f"{DEMO} model.attention=window": "model.attention: ",
    f"{DEMO} model=lm_lstm": "model: ",
    f"{DEMO} model.norm=post": "model.norm: ",
    f"{DEMO} precision=fp16": "precision.dtype: ",
    f"{DEMO} part=decode": "part=decode: needs a model",
    "experiment=transfer/sst2 corpus.path=.": "task: the bench measures ",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_measured_is_refused_at_once(words: str, tmp_path: Path, capsys) -> None:
    assert main(["bench", *words.split(), f"output_dir={tmp_path / 'outputs'}"]) == 2
    assert REFUSED[words] in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_language_model_has_peers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"vocab_size": 400, "end_of_text": 399}
    stages = SimpleNamespace(
        shards=SimpleNamespace(folder="shards"), tokenizer=SimpleNamespace(manifest={"counts": counts})
    )
    task = bench_contenders.task_of(load_config([DEMO]), cast(Prepared, stages))
    assert (task.vocab_size, task.end_of_text, task.optimizer.weight_decay) == (400, 399, 0.1)
    monkeypatch.setattr(bench_contenders, "find_spec", lambda name: object())
    monkeypatch.setattr(bench_contenders, "cores", lambda: 2)
    tasks, notes = bench_contenders.contenders_of(task)
    assert set(tasks) == {BARE, ZERO0, ZERO1, TWO, NANOGPT, HUGGINGFACE} and not notes
    assert (tasks[NANOGPT][0].kind, tasks[HUGGINGFACE][0].kind) == (Kind.nanogpt, Kind.huggingface)
    assert tasks[ZERO0][0].engine.zero_stage == 0 and tasks[TWO][1] == 2

    assert isinstance(task.model, DecoderConfig)
    odd = replace(task, model=replace(task.model, activation=Activation.gelu))
    tasks, notes = bench_contenders.contenders_of(odd)
    assert HUGGINGFACE not in tasks and NANOGPT in tasks
    assert len(notes) == 1 and "model.activation: " in notes[0]
    monkeypatch.setattr(bench_contenders, "find_spec", lambda name: None)
    tasks, notes = bench_contenders.contenders_of(task)
    assert HUGGINGFACE not in tasks and "pip install transformers" in notes[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(f"Text {number}. " + f"It has {number} words. " * (number + 3))
    corpus = DocumentsConfig(
        kind=DocumentsKind.text,
        name="own",
        train=SourceConfig(text=str(folder / "*.txt")),
        held_out=HeldOutConfig(validation=0.2, test=0.2),
    )
    return prepare_documents(corpus, TextTokenizerConfig(vocab_size=300), folder / "outputs")


@pytest.fixture(scope="module")
def model(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    vocab_size = prepared.tokenizer.manifest["counts"]["vocab_size"]
    weights = {name: 3 * one for name, one in DecoderOnly(SHAPE, vocab_size).state_dict().items()}
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, SHAPE, weights, prepared.tokenizer.folder, {"run": "own"})
    return folder


def test_continuations_are_those_of_hugging_face(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transloom.pipeline.model_folder import load_language_model

    loaded = load_language_model(model, torch.device("cpu"))
    write_huggingface(tmp_path, SHAPE, loaded.model.vocab_size, loaded.model.state_dict())
    ours, _ = make_continuer(ContinueTask(Program.ours, str(model), False))
    theirs, _ = make_continuer(ContinueTask(Program.huggingface, str(tmp_path), False))
    request = Prompts([[number + 1, 7, 40 + number] for number in range(5)], new_tokens=16, batch_size=2)
    mine, others = ours(request), theirs(request)
    assert [len(one) for one in mine.tokens] == [16] * 5  # an end of text ends nothing
    assert mine.tokens == others.tokens
    assert mine.seconds > 0 and others.seconds > 0


def test_prompts_come_from_all_over_the_test_documents(prepared: Prepared, model: Path) -> None:
    from transloom.pipeline.model_folder import load_language_model

    tokenizer: Any = load_language_model(model, torch.device("cpu")).tokenizer
    prompts = text_decoding._prompts(prepared.corpus.folder, tokenizer, 8, 10)
    assert len(prompts) == 10 and {len(one) for one in prompts} == {8}
    assert len({tuple(one) for one in prompts}) > 3


def test_a_small_bench_of_decoding(prepared: Prepared, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    bench = replace(BenchConfig(), rounds=2, sentences=6)
    told: list[str] = []
    found = text_decoding.measure_continuing(
        model, prepared.corpus.folder, bench, False, lambda what, done, total: told.append(what)
    )
    assert found["new_tokens"] == 32 and found["prompt_tokens"] == 16 and found["prompts"] == 6
    assert {"ours", "Hugging Face"} <= set(found["contenders"])
    for by_batch in found["contenders"].values():
        assert set(by_batch) == {"1", "32"} and by_batch["32"]["tokens_per_second"]["median"] > 0
    assert found["contenders"]["Hugging Face"]["32"]["identical_to_ours"] == 1.0
    order = [what.rpartition(": ")[2] for what in told if "batch 32" in what and "bf16" not in what]
    assert order == ["ours", "Hugging Face", "Hugging Face", "ours"]
    assert [one["what"] for one in found["ratios"]] == [
        f"tokens/s, {batch} at a time: ours / Hugging Face" for batch in (1, 32)
    ]
    about = {"gpu": None, "processor": "some", "cores": 2}
    assert draw_bench({"decoding": found, "machine": about}, tmp_path / "bench.png").stat().st_size > 10_000


def test_a_model_of_another_task_is_refused_where_it_has_no_corpus_of_its_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(model), "part=decode", f"output_dir={tmp_path / 'outputs'}"]) == 2
    assert "transloom: task: " in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_whole_small_bench(tmp_path: Path) -> None:
    from command import transloom_here

    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"Text {number}. " + f"It has {number} words. " * (number % 9 + 8))
    words = [DEMO, "corpus=text", "corpus.train.text=text", "corpus.held_out.test=0.2", "tokenizer.vocab_size=300"]
    words += ["model.layers=2", "model.d_model=48", "model.d_ff=64", "model.max_positions=64", "batch.micro_tokens=256"]
    words += ["cluster.num_workers=1", "corpus.held_out.validation=0.2"]
    words += ["batch.tokens=256", "rounds=1", "steps=2", "train_steps=24", "sentences=4", "tracking=off", "name=small"]
    said = transloom_here(tmp_path, "bench", *words).out
    assert NANOGPT in said and "Greedy continuations" in said
    assert (tmp_path / "outputs" / "bench" / "small" / "bench.png").stat().st_size > 10_000
