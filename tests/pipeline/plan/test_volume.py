"""How much data there is: counted where it is prepared, estimated from files, published, or unknown."""

import gzip
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.pairs import open_pairs, pair_steps
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.plan.volume import TOKENS_PER_SENTENCE, estimated_volume, prepared_volume

BATCH = BatchConfig(tokens=1024, micro_tokens=256)
PHRASES = CorpusConfig(kind=CorpusKind.phrasebook, name="phrases", held_out=20, phrasebook_pairs=2000)


def test_prepared_shards_are_counted(tmp_path: Path) -> None:
    shards = prepare(PHRASES, CleanConfig(), TokenizerConfig(vocab_size=800), tmp_path).shards.folder
    volume = prepared_volume(shards, BATCH, seed=1)
    pairs = open_pairs(shards, "train")
    assert volume.is_exact and str(shards) in volume.origin
    assert (volume.pairs, volume.source_tokens) == (len(pairs), int(pairs.lengths_of("source").sum()))
    assert volume.longest == max(pairs.lengths_of("source").max(), pairs.lengths_of("target").max())
    steps = pair_steps(pairs, BATCH, 1, rank=0, world_size=1)
    some = list(islice(steps, 50))
    assert volume.step_target_tokens == pytest.approx(sum(step.tokens["target"] for step in some) / 50, rel=0.03)
    epoch = len([step for step in islice(pair_steps(pairs, BATCH, 1, rank=0, world_size=1), 500) if not step.epoch])
    assert volume.steps_per_epoch == pytest.approx(epoch, abs=1)


def test_the_phrasebook_is_at_hand(tmp_path: Path) -> None:
    volume = estimated_volume(replace(PHRASES, phrasebook_pairs=40_000), BATCH)
    assert volume.pairs == 40_000 and "phrasebook" in volume.origin and not volume.is_exact
    assert volume.source_tokens == pytest.approx(479_072, rel=0.25)  # with 4,000 pieces
    assert volume.target_tokens == pytest.approx(480_203, rel=0.25)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_files_are_estimated_by_their_size(tmp_path: Path, suffix: str) -> None:
    for side in ("en", "de"):
        text = b"".join(b"Some words that make a line of %s number %d.\n" % (side.encode(), i) for i in range(5000))
        (tmp_path / f"train.{side}{suffix}").write_bytes(gzip.compress(text) if suffix else text)
    split = SplitConfig(source="train.en", target="train.de")
    corpus = CorpusConfig(kind=CorpusKind.text, name="own", path=str(tmp_path), train=split)
    volume = estimated_volume(corpus, BATCH)
    assert f"train.en{suffix}" in volume.origin
    assert volume.pairs is not None and volume.source_tokens is not None
    if not suffix:
        assert volume.pairs == pytest.approx(5000, rel=0.02)
        assert volume.source_tokens == pytest.approx(5000 * 46.8 / 4.2, rel=0.02)


def test_what_is_not_at_hand_is_published_or_unknown(tmp_path: Path) -> None:
    split = SplitConfig(source="train.en", target="train.de", split="train")
    corpus = CorpusConfig(kind=CorpusKind.dataset, name="far", dataset="far/away", train=split)
    volume = estimated_volume(corpus, BATCH)
    assert volume.pairs is None and volume.steps_per_epoch is None and "unknown" in volume.origin
    assert 0 < volume.step_target_tokens <= BATCH.tokens
    for known in (
        replace(corpus, published_pairs=4_500_000),
        replace(corpus, published_pairs=4_500_000, path=str(tmp_path)),  # where the files are not
    ):
        volume = estimated_volume(known, BATCH)
        assert volume.pairs == 4_500_000 and "published" in volume.origin
        assert volume.source_tokens == 4_500_000 * TOKENS_PER_SENTENCE
    with pytest.raises(ValueError, match=r"^published_pairs: "):
        replace(corpus, published_pairs=0)
