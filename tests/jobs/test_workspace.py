"""Which folder belongs to which configuration, and what may change when a run is resumed; no Ray is started."""

import dataclasses
import importlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from transloom.jobs.config.compose import load_config, read_config, to_dict
from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.runs.workspace import (
    IDENTITY_FORMAT,
    Run,
    find_run,
    identity,
    only_owner,
    only_resumed,
    own_config,
    own_search,
    prepared_before,
    resumed,
    run_for,
    stage_folder,
    user_of,
)
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.jobs.training.train import (
    is_trained,
    refuse_exchanged_tokenizer,
    refuse_too_long,
    refuse_unspaced_targets,
)
from transloom.model.build import ARCHITECTURES
from transloom.model.config import RecurrentConfig
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.prepare import Prepared, prepare
from transloom.pipeline.data.tokenizer import MODEL_FILE
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import load_tokenizer, tokenizer_for
from transloom.pipeline.files import Stage, sha256_file, write_json
from transloom.pipeline.run_folder import CONFIG_FILE, PREPARED_FILE, TRAINING_FILE
from transloom.pipeline.train.checkpoint import save_checkpoint
from transloom.pipeline.train.optimizer import EngineState, Precision, PrecisionConfig

SMALL = ["corpus.phrasebook_pairs=60", "corpus.held_out=5", "tokenizer.vocab_size=400"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def prepared(root: Path) -> Prepared:
    config = configured(root)
    return prepare(config.corpus, config.clean, config.tokenizer, root)


def configured(root: Path, *words: str) -> Config:
    return load_config([*SMALL, f"output_dir={root}", *words])


def test_a_name_of_other_settings_is_refused_by_their_keys(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=taken"), prepared)
    words = ("evaluate.tokenize=char", "cluster.num_workers=1", "cluster.max_failures=9", "decode.beam=2")
    with pytest.raises(UserError, match=r"with another evaluate\.tokenize, another cluster\.num_workers \(see "):
        run_for(configured(root, "name=taken", *words), prepared)


def test_the_same_words_find_the_same_run(root: Path, prepared: Prepared) -> None:
    first = run_for(configured(root), prepared)
    assert run_for(configured(root), prepared) == first
    # What the weights don't depend on makes no other run.
    for word in ("decode.beam=2", "tracking=off", "cluster.max_failures=1", "storage=memory://bucket"):
        assert run_for(configured(root, word), prepared).name == first.name
    for word in ("seed=2", "model.dropout=0.2", "cluster.num_workers=1", "engine=torch"):
        assert run_for(configured(root, word), prepared).name != first.name


def test_another_tokenizer_of_bleu_makes_another_run(root: Path, prepared: Prepared) -> None:
    """Patience and the best snapshots go by BLEU."""
    config = configured(root)
    assert identity(configured(root, "evaluate.tokenize=null"), prepared) == identity(config, prepared)
    assert identity(configured(root, "evaluate.tokenize=char"), prepared) != identity(config, prepared)


@pytest.mark.parametrize("job", ["run", "train", "sweep", "race"])
def test_a_tokenizer_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    load_tokenizer.cache_clear()
    for file, line in (("a.en", "a b\n"), ("a.ja", "c d\n")):
        (tmp_path / file).write_text(line * 50)
    words = ["corpus=text", f"corpus.train.source={tmp_path}/a.en", f"corpus.train.target={tmp_path}/a.ja"]
    words += ["corpus.target_language=ja_JP", f"output_dir={tmp_path}/outputs", "corpus.held_out=2"]
    more = {"race": ["experiment=attention_vs_recurrence"], "sweep": ["sweep=random"]}
    with pytest.raises(UserError, match=r"^evaluate\.tokenize: .*pip install 'sacrebleu\[ja\]'"):
        importlib.import_module(f"transloom.jobs.commands.{job}").main([*words, *more.get(job, [])])
    assert not (tmp_path / "outputs" / "runs").exists()
    load_tokenizer.cache_clear()


def test_a_target_without_spaces_needs_its_language_before_training(tmp_path: Path, prepared: Prepared) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "validation.target").write_bytes("今天红色的房子卖绿色的狗。\n".encode())
    write_json(folder / PREPARED_FILE, {"corpus": str(tmp_path / "corpus")})
    with pytest.raises(UserError, match=r"^corpus\.target_language: "):
        refuse_unspaced_targets(Run("one", folder, configured(tmp_path)))
    for word in ("corpus.target_language=zh", "corpus.target_language=ja", "evaluate.tokenize=13a"):
        refuse_unspaced_targets(Run("one", folder, configured(tmp_path, word)))


def test_other_data_make_another_run(root: Path, prepared: Prepared) -> None:
    config = configured(root, "corpus.phrasebook_pairs=70")
    other = prepare(config.corpus, config.clean, config.tokenizer, root)
    assert run_for(config, other).name != run_for(configured(root), prepared).name


def test_a_resumed_run_keeps_its_settings_but_for_what_may_change(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=lent", "model.dropout=0.2", "cluster.address=auto", "precision=fp32"), prepared)
    words = ["resume=lent", f"output_dir={root}", "train.max_steps=7", "engine=torch"]
    config = resumed(load_config(words), words)
    assert config.cluster.address is None, "where it runs is for whoever resumes it"
    assert (config.model.dropout, config.train.max_steps, config.engine.name.value) == (0.2, 7, "torch")
    assert run_for(config, prepared).folder == root / "runs" / "lent"


def test_a_run_whose_warm_up_would_be_longer_than_its_new_total_is_refused(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=cut", "schedule=linear", "schedule.warmup_steps=100"), prepared)
    words = ["resume=cut", f"output_dir={root}", "train.max_steps=99"]
    with pytest.raises(UserError, match=r"^schedule\.warmup_steps: 100 .*train\.max_steps=99"):
        resumed(load_config(words), words)


def test_a_run_in_a_folder_that_was_moved_goes_on_with_what_lies_beside_it(
    root: Path, prepared: Prepared, tmp_path: Path
) -> None:
    run_for(configured(root, "name=moved"), prepared)
    before, moved = tmp_path / "before", tmp_path / "after"
    shutil.copytree(root, before)
    record = before / "runs" / "moved" / PREPARED_FILE
    record.write_bytes(record.read_bytes().replace(str(root).encode(), str(before).encode()))
    before.rename(moved)

    words = ["resume=moved", f"output_dir={moved}"]
    config = resumed(load_config(words), words)
    found = prepared_before(config)
    assert found is not None and found.shards.folder.is_relative_to(moved)
    assert run_for(config, found).folder == moved / "runs" / "moved"
    assert stage_folder(moved / "runs" / "moved", "tokenizer") == moved / "tokenizers" / prepared.tokenizer.folder.name
    with pytest.raises(UserError, match="the data of the run moved have changed"):
        other = dataclasses.replace(prepared.shards, folder=prepared.shards.folder.with_name("others"))
        run_for(config, dataclasses.replace(prepared, shards=other))


@pytest.mark.parametrize("word", ["model.dropout=0.3", "batch.tokens=8192", "corpus=phrasebook_en_fr", "seed=3"])
def test_what_would_make_another_run_is_refused_by_key(root: Path, prepared: Prepared, word: str) -> None:
    run_for(configured(root, "name=kept", "model.dropout=0.2"), prepared)
    words = ["resume=kept", f"output_dir={root}", word]
    with pytest.raises(UserError, match=f"^{word.partition('=')[0]}: can't change"):
        resumed(load_config(words), words)


def test_an_unknown_run_names_those_there_are(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=kept", "model.dropout=0.2"), prepared)
    with pytest.raises(UserError, match=r"no run 'kpet'.*kept"):
        find_run("kpet", root)


def test_sentences_longer_than_the_model_are_refused_before_training(root: Path, prepared: Prepared) -> None:
    run = run_for(configured(root, "name=short", "model.max_positions=8"), prepared)
    with pytest.raises(UserError, match=r"^model\.max_positions: 8 is less than the longest sentence of corpus\.train"):
        refuse_too_long(run)
    refuse_too_long(run_for(configured(root), prepared))


def test_when_a_training_has_ended(root: Path, prepared: Prepared) -> None:
    run = run_for(configured(root, "name=ended", "train.max_steps=10", "train.patience=3"), prepared)
    assert not is_trained(run)

    def with_limits(max_steps: int, patience: int) -> Run:
        train = dataclasses.replace(run.config.train, max_steps=max_steps, patience=patience)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, train=train))

    write_json(run.folder / TRAINING_FILE, {"step": 10, "reason": "max_steps", "patience": 3})
    assert is_trained(run)
    assert not is_trained(with_limits(11, 3))
    write_json(run.folder / TRAINING_FILE, {"step": 6, "reason": "patience", "patience": 3})
    assert is_trained(run)
    assert not is_trained(with_limits(10, 4))
    assert not is_trained(with_limits(10, 0))


def test_a_password_in_the_tracking_address_is_not_kept(root: Path, prepared: Prepared) -> None:
    address = "tracking.uri=http://me:canary-7731@host:5000"
    files = "corpus.data_files.train=https://host/x?sig=canary-7731"
    run = run_for(configured(root, "name=secret", address, files), prepared)
    for file in run.folder.iterdir():
        assert b"canary-7731" not in file.read_bytes()
    words = ["resume=secret", f"output_dir={root}"]
    with pytest.raises(UserError, match=r"^tracking\.uri: the password"):
        resumed(load_config(words), words)
    words.append(address)
    assert resumed(load_config(words), words).tracking.uri == "http://me:canary-7731@host:5000"


def test_only_its_owner_changes_a_runs_settings(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=owned"), prepared)
    again = run_for(configured(root, "name=owned", "cluster.max_failures=7"), prepared)
    assert read_config(again.folder / CONFIG_FILE).cluster.max_failures != 7
    with only_owner(again):
        assert read_config(again.folder / CONFIG_FILE).cluster.max_failures == 7
        assert user_of(again.folder) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), only_owner(again):
            pass
    assert user_of(again.folder) is None


@pytest.mark.parametrize("word", ["decode=greedy", "decode.beam=8", "decode.length_penalty=1.0"])
def test_another_search_does_not_become_the_runs_own(root: Path, prepared: Prepared, word: str) -> None:
    first = run_for(configured(root, "name=searched"), prepared)
    before = (first.folder / CONFIG_FILE).read_bytes()
    words = ["resume=searched", f"output_dir={root}", word]
    other = run_for(resumed(load_config(words), words), prepared)
    assert other.config.decode != first.config.decode
    with only_owner(other):
        assert own_search(other) == first.config.decode
    # The resumption itself notes which run it is; the search is as it was.
    after = read_config(first.folder / CONFIG_FILE)
    assert after.decode == first.config.decode and b"beam: 4" in before
    assert evaluation_folder_name(other) != evaluation_folder_name(first)
    assert evaluation_folder_name(other).startswith(other.config.decode.label())


def test_another_tokenizer_of_bleu_does_not_become_the_runs_own(root: Path, prepared: Prepared) -> None:
    first = run_for(configured(root, "name=scored"), prepared)
    words = ["resume=scored", f"output_dir={root}", "evaluate.tokenize=char"]
    other = run_for(resumed(load_config(words), words), prepared)
    with only_owner(other):
        own = own_config(other)
        by = tokenizer_for(own.corpus.target_language, own.evaluate)
        assert (by, other.config.evaluate.tokenize) == ("13a", "char")
    assert read_config(first.folder / CONFIG_FILE).evaluate.tokenize is None
    assert evaluation_folder_name(other) != evaluation_folder_name(first)


def evaluation_folder_name(run: Run) -> str:
    (run.folder / "model").mkdir(exist_ok=True)
    write_json(run.folder / "model" / "config.json", {"sha256": "of weights"})
    folder = evaluation_folder(run)
    assert folder is not None
    return folder.name


def test_a_resumed_run_keeps_its_name(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=called"), prepared)
    words = ["resume=called", "name=tuned", f"output_dir={root}"]
    with pytest.raises(UserError, match=r"^name: "):
        resumed(load_config(words), words)
    words[1] = "name=called"
    assert resumed(load_config(words), words).name == "called"


def test_a_configuration_from_elsewhere_goes_on_with_its_own_run_only(root: Path, prepared: Prepared) -> None:
    run_for(configured(root, "name=mine", "model.dropout=0.2"), prepared)
    words = ("name=mine", "model.dropout=0.2", "train.max_steps=9", "engine=torch")
    config = dataclasses.replace(configured(root, *words), resume="mine")
    assert only_resumed(config) == config
    other = dataclasses.replace(configured(root, *words, "seed=3"), resume="mine")
    with pytest.raises(UserError, match=r"seed: is another one than that of the run mine"):
        only_resumed(other)
    other = dataclasses.replace(configured(root, "name=mine", "model.dropout=0.3"), resume="mine")
    with pytest.raises(UserError, match=r"model\.dropout: is another one"):
        only_resumed(other)


def test_a_run_that_was_stopped_before_it_began_is_begun(root: Path) -> None:
    config = configured(root, "name=early")
    assert only_resumed(dataclasses.replace(config, resume="early")) == config


def test_a_new_setting_orphans_no_run() -> None:
    """These are names of folders that people have. Another one means that their runs are not found any more."""
    shards = Stage(Path("shards"), {"key": "k"}, True, 0.0)
    prepared = Prepared(shards, shards, shards)
    configs = (
        Config(),
        Config(seed=2, cluster=ClusterConfig(num_workers=2), batch=BatchConfig(tokens=8192)),
        Config(model=RecurrentConfig(dropout=0.3), precision=PrecisionConfig(Precision.bf16)),
    )
    assert [identity(config, prepared)[:8] for config in configs] == ["ab2fef5a", "12507f26", "b54c2834"]


def test_a_default_changes_only_with_the_format_of_identities() -> None:
    """An identity has what differs from the defaults: another default would give different settings one identity."""
    file = Path(__file__).with_name("defaults.yaml")
    before = yaml.safe_load(file.read_text())
    assert before.pop("format") == IDENTITY_FORMAT
    now = {architecture: to_dict(Config(model=kind()))["model"] for architecture, kind in ARCHITECTURES.items()} | {
        "config": {name: value for name, value in to_dict(Config()).items() if name != "model"}
    }

    def changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in old.items():
            if isinstance(value, dict) and isinstance(new.get(name), dict):
                yield from changed(value, new[name], f"{prefix}{name}.")
            elif name not in new or new[name] != value:
                yield f"{prefix}{name}"

    assert list(changed(before, now)) == [], f"raise IDENTITY_FORMAT, and write the defaults into {file} anew"


def test_a_resumed_run_takes_as_many_workers_as_its_own_batch_allows(root: Path, prepared: Prepared) -> None:
    """Not the default experiment's batch, which the words alone would be composed with."""
    run_for(configured(root, "name=six", "batch.tokens=3072", "batch.micro_tokens=512"), prepared)
    words = ["resume=six", f"output_dir={root}", "cluster.num_workers=6"]
    assert load_config(["batch.tokens=1024", "batch.micro_tokens=512"]).batch.micro_batches < 6
    for others in (words, ["resume=six", f"output_dir={root}", "cluster.num_workers=3", "engine=torch"]):
        assert resumed(load_config(others), others).cluster.num_workers in (3, 6)
    words[-1] = "cluster.num_workers=7"
    with pytest.raises(UserError, match=r"^cluster\.num_workers: 7 workers .* 6 micro-batches"):
        resumed(load_config(words), words)


def test_a_tokenizer_that_was_exchanged_is_refused(root: Path, prepared: Prepared, tmp_path: Path) -> None:
    run = run_for(configured(root, "name=exchanged"), prepared)
    trained_with = sha256_file(prepared.tokenizer.folder / MODEL_FILE)
    state = EngineState({"weights/a": torch.zeros(1)}, {})
    save_checkpoint(run.folder / "checkpoints", 3, state, {}, about={"tokenizer": trained_with}, keep=2)
    (checkpoint,) = (run.folder / "checkpoints").glob("step_*")
    refuse_exchanged_tokenizer(run, checkpoint)
    other = tmp_path / "tokenizers" / prepared.tokenizer.folder.name
    shutil.copytree(prepared.tokenizer.folder, other)
    with open(other / MODEL_FILE, "ab") as file:
        file.write(b"\n")
    moved = tmp_path / "runs" / "exchanged"
    shutil.copytree(run.folder, moved)
    with pytest.raises(UserError) as refused:
        refuse_exchanged_tokenizer(Run("exchanged", moved, run.config), checkpoint)
    assert trained_with in str(refused.value) and sha256_file(other / MODEL_FILE) in str(refused.value)
