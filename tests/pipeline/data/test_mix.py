"""A share of another corpus in every epoch: how much, which, and that it depends on (seed, epoch) alone."""

import dataclasses

import numpy as np
import pytest

from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, MixConfig, SplitConfig
from transloom.pipeline.data.longest import refuse_longer
from transloom.pipeline.data.mix import drawn_rows, mixed, mixed_count
from transloom.pipeline.data.pairs import open_pairs, pair_steps
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.errors import UserError

TOKENIZER = TokenizerConfig(vocab_size=320)


def corpus_of(folder, share: float = 0.2, **lines: list[str]) -> CorpusConfig:
    """train 80 pairs, validation and test 4, mix 30; source and target differ in a word."""
    parts = {
        "train": [f"train {i} of new" for i in range(80)],
        "validation": [f"validation {i}" for i in range(4)],
        "test": [f"test {i}" for i in range(4)],
        "mix": [f"old {i}" for i in range(30)],
        **lines,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, tuple[str, str]] = {}
    for name, texts in parts.items():
        files[name] = (str(folder / f"{name}.en"), str(folder / f"{name}.de"))
        for file, word in zip(files[name], ("", " ja"), strict=True):
            with open(file, "w") as opened:
                opened.writelines(f"{text}{word}\n" for text in texts)
    train, validation, test = (SplitConfig(*files[name]) for name in ("train", "validation", "test"))
    source, target = files["mix"]
    mix = MixConfig(source, target, share) if share else MixConfig()
    return CorpusConfig(CorpusKind.text, "new", train=train, validation=validation, test=test, mix=mix)


@pytest.mark.parametrize(("train", "share", "count"), [(80, 0.2, 20), (80, 0.5, 80), (100, 0.0, 0), (3, 0.01, 0)])
def test_the_share_is_of_all_pairs_of_an_epoch(train, share, count):
    assert mixed_count(train, share) == count


def test_rows_are_drawn_by_seed_and_epoch_and_none_twice_before_all_were():
    rows = drawn_rows(30, 20, seed=1, epoch=0)
    assert len(set(rows.tolist())) == 20 and rows.max() < 30
    assert np.array_equal(rows, drawn_rows(30, 20, seed=1, epoch=0))
    assert not np.array_equal(rows, drawn_rows(30, 20, seed=1, epoch=1))
    assert not np.array_equal(rows, drawn_rows(30, 20, seed=2, epoch=0))
    counts = np.bincount(drawn_rows(30, 70, seed=1, epoch=0), minlength=30)
    assert counts.min() == 2 and counts.max() == 3
    assert drawn_rows(30, 0, seed=1, epoch=0).shape == (0,)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("mix")
    return prepare(corpus_of(root / "in"), CleanConfig(), TOKENIZER, root / "out")


def test_the_other_corpus_is_a_split_of_its_own_with_its_counts(prepared):
    counts = prepared.corpus.manifest["counts"]
    assert counts["splits"]["mix"]["pairs"] == 30 and counts["splits"]["train"]["pairs"] == 80
    assert counts["mix"] == {"read": 30, "dropped": {}}
    assert prepared.shards.manifest["counts"]["splits"]["mix"]["pairs"] == 30
    assert (prepared.corpus.folder / "mix.target").read_text().splitlines()[3] == "old 3 ja"


def test_an_epoch_has_all_of_train_and_a_drawn_part_of_the_other(prepared):
    train, other = (open_pairs(prepared.shards.folder, split) for split in ("train", "mix"))
    epoch = mixed(train, other, 0.2, seed=3, epoch=1)
    assert len(epoch) == 100 and epoch.columns == train.columns
    for row in (0, 79):
        assert np.array_equal(epoch.get("target", row), train.get("target", row))
    rows = drawn_rows(30, 20, seed=3, epoch=1)
    for place, row in enumerate(rows):
        assert np.array_equal(epoch.get("source", 80 + place), other.get("source", int(row)))
        assert epoch.lengths[80 + place].tolist() == other.lengths[row].tolist()


def test_the_steps_are_the_same_at_every_number_of_workers(prepared):
    train, other = (open_pairs(prepared.shards.folder, split) for split in ("train", "mix"))

    def steps(rank: int, world_size: int, count: int = 20):
        of_epoch = {"of_epoch": lambda train, seed, epoch: mixed(train, other, 0.3, seed, epoch)}
        place = {"rank": rank, "world_size": world_size, **of_epoch}
        found = pair_steps(train, BatchConfig(tokens=128, micro_tokens=32), 7, **place)
        return [next(found) for _ in range(count)]

    alone = steps(0, 1)
    assert {step.epoch for step in alone} >= {0, 1}
    for one, first, second in zip(alone, steps(0, 2), steps(1, 2), strict=True):
        assert one.tokens == first.tokens == second.tokens
        shared = [
            rows.tolist()
            for step in (first, second)
            for rows, share in zip(step.rows, step.shares, strict=True)
            if share
        ]
        assert sorted(rows.tolist() for rows in one.rows) == sorted(shared)


def test_the_other_corpus_is_cleaned_as_train_against_validation_and_test(tmp_path):
    corpus = corpus_of(tmp_path / "in", mix=["test 2", "old 1", "", "old 2"])
    counts = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out").corpus.manifest["counts"]
    assert counts["mix"] == {"read": 4, "dropped": {"contaminated": 1, "empty": 1}}
    assert counts["dropped"] == {} and counts["read"] == 80  # train's own


def test_without_a_share_all_is_as_it_was(tmp_path, prepared):
    plain = prepare(corpus_of(tmp_path / "in", share=0.0), CleanConfig(), TOKENIZER, tmp_path / "out")
    assert plain.corpus.manifest["counts"]["splits"].keys() == {"train", "validation", "test"}
    assert plain.corpus.folder.name != prepared.corpus.folder.name
    assert plain.tokenizer.folder.name == prepared.tokenizer.folder.name


def test_faults_are_named_by_the_settings_of_the_mix(tmp_path, prepared):
    corpus = corpus_of(tmp_path / "in")
    missing = dataclasses.replace(corpus, mix=MixConfig("gone.en", "gone.de", 0.2))
    with pytest.raises(UserError, match=r"gone\.en"):
        prepare(missing, CleanConfig(), TOKENIZER, tmp_path / "out")
    (tmp_path / "in" / "mix.de").write_text("ein Satz\n")
    with pytest.raises(UserError, match=r"^corpus\.mix: "):
        prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    with pytest.raises(UserError, match=r"^batch\.micro_tokens: 2 .*corpus\.mix"):
        refuse_longer(prepared.corpus.folder, prepared.shards.folder, "mix", "batch.micro_tokens", 2)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"share": 0.2}, "source"),
        ({"share": 1.0, "source": "a", "target": "b"}, "share"),
        ({"share": -0.1}, "share"),
        ({"source": "a", "share": 0.1}, "source"),
        ({"source": "a", "target": "b"}, "share"),
    ],
)
def test_incomplete_settings_are_refused(settings, field):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        MixConfig(**settings)


def test_its_files_are_paths_of_the_corpus():
    mix = MixConfig("old.en", "old.de", 0.2)
    corpus = CorpusConfig(mix=mix).with_absolute_paths()
    assert corpus.paths["corpus.mix.source"].startswith("/") and corpus.paths["corpus.mix.target"].endswith("/old.de")
