"""With `train.initial` the model and the tokenizer are those of the initial model, unless the command names others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_folder import SHAPE, write_language_model

from transloom.jobs.cli import configuration
from transloom.jobs.config.compose import load_config, to_yaml, with_absolute_paths
from transloom.model.build import build_model
from transloom.model.config import DecoderConfig, TransformerConfig
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, TextTokenizerKind
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import sha256_file
from transloom.pipeline.model_folder import save_model

TRANSLATOR = TransformerConfig(d_model=24, d_ff=40, num_heads=3, encoder_layers=1, decoder_layers=2, dropout=0.2)
TEXT = [f"{i} times {i + 1} is {i * (i + 1)}" for i in range(200)]
MIX = ("corpus.mix.share=0.3", "corpus.mix.source=a.en", "corpus.mix.target=b.de")
OF_TEXTS = ("experiment=language_model/demo", "batch.tokens=1024", "batch.micro_tokens=512")


def composed(words: list[str]) -> Any:
    """The configuration, whose sections depend on the words."""
    return load_config(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An output folder with a translator's model folder in a run, a run that was never evaluated, and gpt/, a Hugging
    Face folder."""
    root = tmp_path_factory.mktemp("place")
    (root / "text").write_text("\n".join(TEXT) + "\n")
    tokenizer = root / "outputs" / "tokenizers" / "1234"
    tokenizer.mkdir(parents=True)
    train_tokenizer([root / "text"], TokenizerConfig(vocab_size=300), tokenizer)
    vocab_size = Tokenizer.load(tokenizer).vocab_size
    for name in ("evaluated", "trained"):
        run = root / "outputs" / "runs" / name
        run.mkdir(parents=True)
        config = composed(["model.d_model=24", "model.num_heads=3", "model.encoder_layers=1"])
        (run / "config.yaml").write_text(to_yaml(config))
        stages = {"corpus": "/gone/c", "tokenizer": "/gone/1234", "shards": "/gone/s"}
        (run / "prepared.json").write_text(json.dumps({"identity": "1", **stages}))
    weights = build_model(TRANSLATOR, vocab_size).state_dict()
    save_model(root / "outputs" / "runs" / "evaluated" / "model", TRANSLATOR, weights, tokenizer, {"steps": [1]})
    write_language_model(root / "gpt")
    return root


@pytest.fixture(autouse=True)
def in_place(place, monkeypatch) -> None:
    monkeypatch.chdir(place)


@pytest.mark.parametrize("initial", ["evaluated", "outputs/runs/evaluated", "outputs/runs/evaluated/model"])
def test_nothing_of_a_run_or_a_model_folder_needs_to_be_repeated(place, initial, capsys):
    config = composed([f"train.initial={initial}"])
    assert config.model == TRANSLATOR
    assert config.tokenizer == TokenizerConfig(path=str(place / "outputs" / "runs" / "evaluated" / "model"))
    assert capsys.readouterr().err == f"transloom: model and tokenizer are those of train.initial={initial}\n"


def test_a_run_without_an_evaluation_gives_its_settings_and_its_tokenizer(place):
    config = composed(["train.initial=trained"])
    assert (config.model.d_model, config.model.encoder_layers, config.model.decoder_layers) == (24, 1, 2)
    assert config.tokenizer == TokenizerConfig(path=str(place / "outputs" / "tokenizers" / "1234"))


@pytest.mark.parametrize("initial", ["gpt", "./gpt", "{place}/gpt"])
def test_a_hugging_face_folder_gives_its_shape_and_its_tokenizer(place, initial):
    config = with_absolute_paths(composed([*OF_TEXTS, f"train.initial={initial.format(place=place)}"]))
    assert isinstance(config.model, DecoderConfig)
    assert (config.model.layers, config.model.d_model, config.model.max_positions) == (2, 32, SHAPE.max_positions)
    assert config.tokenizer == TextTokenizerConfig(kind=TextTokenizerKind.file, path=str(place / "gpt"))


def test_what_a_command_names_wins(capsys):
    config = composed(["train.initial=evaluated", "model.dropout=0.4", "tokenizer=bpe_6k"])
    assert config.model == TransformerConfig(**{**TRANSLATOR.__dict__, "dropout": 0.4})
    assert config.tokenizer == TokenizerConfig(vocab_size=6000)
    assert capsys.readouterr().err == "transloom: model is that of train.initial=evaluated\n"
    config = composed(["train.initial=evaluated", "model=base"])
    assert (config.model.d_model, config.model.encoder_layers) == (512, 6) and config.tokenizer.path
    config = composed(["train.initial=evaluated", "train.initial_embeddings=false"])
    assert config.model == TRANSLATOR and config.tokenizer == TokenizerConfig(vocab_size=4000)


def test_what_the_experiment_sets_of_the_model_itself_wins_and_its_groups_give_way(place):
    config = composed(["experiment=multi30k_en_de", "train.initial=evaluated"])  # model: small, dropout: 0.3
    assert (config.model.d_model, config.model.dropout, config.tokenizer.vocab_size) == (24, 0.3, 10_000)
    (place / "mine.yaml").write_text("model:\n  dropout: 0.5\n")
    config = composed(["experiment=mine.yaml", "train.initial=evaluated"])
    assert (config.model.d_model, config.model.dropout) == (24, 0.5)


def test_an_end_of_text_completes_the_tokenizer_of_the_initial_model(place):
    config = composed([*OF_TEXTS, "train.initial=gpt", "tokenizer.end_of_text=<|endoftext|>"])
    assert (config.tokenizer.path, config.tokenizer.end_of_text) == (str(place / "gpt"), "<|endoftext|>")


def test_a_model_of_another_task_is_refused():
    with pytest.raises(UserError, match=r"^model\.architecture: decoder_only is no model of task=translation"):
        composed(["train.initial=gpt"])


def test_a_model_that_is_not_there_is_refused_at_once_unless_the_job_runs_elsewhere(capsys):
    with pytest.raises(UserError, match=r"^train\.initial: there is no run 'nobody'.*; the latest there: "):
        composed(["train.initial=nobody"])
    config = configuration("run", ["train.initial=nobody"], is_elsewhere=True)
    assert config.model.d_model == 128 and config.tokenizer.path is None
    assert "train.initial: nobody is not on this machine" in capsys.readouterr().err


def test_a_damaged_folder_is_refused(place):
    (place / "broken").mkdir(exist_ok=True)
    (place / "broken" / "config.json").write_text('{"architecture": "transformer"')
    with pytest.raises(UserError, match=r"^train\.initial: .*broken/config\.json"):
        composed(["train.initial=broken"])


# A corpus prepared with the existing tokenizer


def _corpus(place: Path, name: str, text: list[str]) -> Any:
    (place / f"{name}.en").write_text("\n".join(text) + "\n")
    (place / f"{name}.de").write_text("\n".join(line.replace("times", "mal") for line in text) + "\n")
    words = ["corpus=text", "corpus.held_out=5", f"corpus.train.source={name}.en", f"corpus.train.target={name}.de"]
    return with_absolute_paths(composed([*words, "train.initial=evaluated"]))


def test_the_corpus_is_prepared_with_that_tokenizer_and_its_hash_names_the_shards(place, tmp_path):
    config = _corpus(place, "more", TEXT)
    prepared = prepare(config.corpus, config.clean, config.tokenizer, tmp_path)
    model = place / "outputs" / "runs" / "evaluated" / "model" / "tokenizer.model"
    assert sha256_file(prepared.tokenizer.folder / "tokenizer.model") == sha256_file(model)
    assert prepared.shards.manifest["counts"]["tokenizer"]["sha256"] == sha256_file(model)
    assert prepared.tokenizer.manifest["counts"]["training_lines"] == 0
    # The same file elsewhere, or beside another corpus, is the same tokenizer.
    copy = tmp_path / "copy.model"
    copy.write_bytes(model.read_bytes())
    again = prepare(config.corpus, config.clean, TokenizerConfig(vocab_size=500, path=str(copy)), tmp_path)
    assert again.shards.folder == prepared.shards.folder and again.shards.skipped
    other = _corpus(place, "other", TEXT[50:])
    others = prepare(other.corpus, other.clean, other.tokenizer, tmp_path)
    assert others.tokenizer.folder == prepared.tokenizer.folder and others.shards.folder != prepared.shards.folder


@pytest.mark.parametrize("path", ["nothing", "gpt", "text"])
def test_a_path_without_a_sentencepiece_model_is_refused(place, tmp_path, path):
    config = _corpus(place, "more", TEXT)
    with pytest.raises(UserError, match=r"^tokenizer\.path: "):
        prepare(config.corpus, config.clean, TokenizerConfig(path=path), tmp_path)


def test_a_plan_counts_the_vocabulary_of_that_tokenizer(place):
    from transloom.jobs.commands.plan import training_of

    training = training_of(with_absolute_paths(composed(["train.initial=evaluated"])), None)
    assert training.vocab_size == Tokenizer.load(place / "outputs" / "tokenizers" / "1234").vocab_size
    assert training.model == TRANSLATOR


def test_the_weights_fit_by_themselves(place):
    from transloom.model.build import Model
    from transloom.pipeline.model_folder import read_model
    from transloom.pipeline.train.initial import fitting

    config = composed(["train.initial=evaluated"])
    stored = read_model(Path(config.tokenizer.path or ""))
    with torch.device("meta"):
        model: Model = build_model(config.model, len(stored.weights["embedding.weight"]))
    initial = fitting(stored, config.model, model.state_dict(), stored.tokenizer, with_embeddings=True)
    assert not initial.left_out and not initial.fresh


# Pairs of the run's own corpus, against forgetting


def test_a_share_without_files_is_of_the_pairs_that_the_run_was_trained_on(capsys):
    config = composed(["train.initial=evaluated", "corpus.mix.share=0.2"])
    assert (config.corpus.mix.source, config.corpus.mix.target) == ("/gone/c/train.source", "/gone/c/train.target")
    assert "corpus.mix is train of /gone/c" in capsys.readouterr().err
    named = composed(["train.initial=evaluated", *MIX])
    assert (named.corpus.mix.source, named.corpus.mix.share) == ("a.en", 0.3)


def test_a_share_of_nothing_is_refused(place):
    with pytest.raises(UserError, match=r"^corpus\.mix\.source: "):
        composed(["corpus.mix.share=0.2"])


def test_the_share_is_part_of_a_run_s_identity(place):
    from transloom.jobs.runs.workspace import identity
    from transloom.pipeline.data.prepare import Prepared
    from transloom.pipeline.files import Stage

    stage = Stage(place, {"key": "1"}, True, 0.0)
    prepared = Prepared(stage, stage, stage)
    words = ["corpus.mix.source=a.en", "corpus.mix.target=b.de"]
    shares = ([], [*words, "corpus.mix.share=0.2"], [*words, "corpus.mix.share=0.3"])
    assert len({identity(composed(share), prepared) for share in shares}) == 3
