"""How much there is to train on: from prepared shards, from the corpus's files, or from what is published of it."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from transloom.pipeline.data.batches import BatchConfig, plan_epoch
from transloom.pipeline.data.corpus import text_files
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.pairs import SentencePair, open_pairs
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json

# Bytes of UTF-8 for each token, the line's end included: 3.9 and 4.4 on Multi30k's two sides with 6,000 pieces, 4.5 and
# 4.9 on the phrasebook's with 4,000.
BYTES_PER_TOKEN = 4.2
GZIP_FACTOR = 3.0  # of text
TOKENS_PER_SENTENCE = 30.0  # of news, in large vocabularies; used where only the number of pairs is known
LONGEST = 100  # tokens of the longest sentences that come by often enough to decide on the memory
FILL = 0.95  # of the budget, on both sides: 0.92 and 0.96 on Multi30k
SAMPLE = 1000  # lines or pairs that are looked at
MOST_PLANNED = 1_000_000  # pairs: those of an epoch's plan that are enough to know its steps


@dataclass(frozen=True)
class Volume:
    """The training pairs, and what a step takes of them.

    Attributes:
        pairs, source_tokens, target_tokens: of an epoch; None where nothing is known.
        longest: tokens of the longest sentence on either side.
        step_source_tokens, step_target_tokens: of a step, over all workers, without padding; the mean.
        origin: where the numbers come from. is_exact: counted, not estimated.
    """

    pairs: int | None
    source_tokens: int | None
    target_tokens: int | None
    longest: int
    step_source_tokens: float
    step_target_tokens: float
    origin: str
    is_exact: bool = False

    @property
    def steps_per_epoch(self) -> float | None:
        if self.target_tokens is None or self.source_tokens is None:
            return None
        return max(self.target_tokens / self.step_target_tokens, self.source_tokens / self.step_source_tokens)

    @property
    def step_tokens(self) -> tuple[float, ...]:
        """Of a step, by column."""
        return self.step_source_tokens, self.step_target_tokens

    @property
    def numbers(self) -> tuple[int, int] | None:
        """Token ids, and lengths, that the shards of an epoch hold; None where nothing is known."""
        if self.pairs is None or self.source_tokens is None or self.target_tokens is None:
            return None
        return self.source_tokens + self.target_tokens, 2 * self.pairs


def random_lengths(mean: float, longest: int, count: int = 20_000) -> np.ndarray:
    """(count,) tokens of sentences, skewed as sentences are; the n-th is as long, for its mean, on either side."""
    factors = np.random.default_rng(0).lognormal(-0.125, 0.5, count)  # of mean 1
    return np.clip(np.rint(mean * factors), 2, longest).astype(np.int32)


def training_lengths(volume: Volume, shards: Path | None, micro_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(pairs,) tokens of the source's and of the target's sentences: the corpus's own, or random ones like them."""
    if shards is not None:
        pairs = open_pairs(shards, "train")
        return pairs.lengths_of("source")[:MOST_PLANNED], pairs.lengths_of("target")[:MOST_PLANNED]
    longest = min(volume.longest, micro_tokens)
    if volume.pairs is None or volume.source_tokens is None or volume.target_tokens is None:
        means = TOKENS_PER_SENTENCE, TOKENS_PER_SENTENCE
    else:
        means = volume.source_tokens / volume.pairs, volume.target_tokens / volume.pairs
    return random_lengths(means[0], longest), random_lengths(means[1], longest)


def prepared_volume(shards: Path, batch: BatchConfig, seed: int) -> Volume:
    """Counted: the corpus is prepared, so that the plan of an epoch can be made.

    Raises:
        UserError: a pair is larger than a micro-batch.
    """
    counts: dict[str, Any] = read_json(shards / MANIFEST)["counts"]["splits"]["train"]
    pairs = open_pairs(shards, "train")
    lengths = pairs.lengths[:MOST_PLANNED]
    source, target = lengths.sum(axis=0)
    steps = len(plan_epoch(lengths, batch, seed, 0)) / batch.micro_batches
    return Volume(
        pairs=counts["pairs"],
        source_tokens=counts["source_tokens"],
        target_tokens=counts["target_tokens"],
        longest=max(counts["longest_source"], counts["longest_target"]),
        step_source_tokens=float(source) / steps,
        step_target_tokens=float(target) / steps,
        origin=f"counted: the corpus is prepared, {shards}",
        is_exact=True,
    )


def estimated_volume(corpus: CorpusConfig, batch: BatchConfig) -> Volume:
    """Without prepared shards: by the size of the files if they are at hand, else by the published number of pairs."""
    found = _by_size(corpus) or _by_publication(corpus)
    if found is None:
        step = FILL * batch.tokens
        return Volume(None, None, None, LONGEST, step, step, "unknown: the corpus is not at hand")
    pairs, source, target, origin = found
    # The fuller side reaches the budget first
    fullest = max(source, target)
    return Volume(
        pairs=round(pairs),
        source_tokens=round(source),
        target_tokens=round(target),
        longest=LONGEST,
        step_source_tokens=FILL * batch.tokens * source / fullest,
        step_target_tokens=FILL * batch.tokens * target / fullest,
        origin=origin,
    )


def _by_size(corpus: CorpusConfig) -> tuple[float, float, float, str] | None:
    """Pairs, source tokens, target tokens and where they come from."""
    if corpus.kind is CorpusKind.phrasebook:
        return _of_phrasebook(corpus)
    if not corpus.reads_text:
        return None
    try:
        files = text_files(corpus, "train")
    except UserError:  # they are elsewhere: a plan needs no corpus at hand
        return None
    sizes = [_text_bytes(file) for file in files]
    line = _bytes_per_line(files[0])
    source, target = (size / BYTES_PER_TOKEN for size in sizes)
    origin = f"estimated from the size of {files[0].name} and {files[1].name}, {BYTES_PER_TOKEN} bytes a token"
    return sizes[0] / line, source, target, origin


def _of_phrasebook(corpus: CorpusConfig) -> tuple[float, float, float, str]:
    from transloom.pipeline.phrasebook import phrasebook_pairs

    count = min(SAMPLE, corpus.phrasebook_pairs)
    some = list(phrasebook_pairs(corpus.source_language, corpus.target_language, "train", count))
    source, target = (
        sum(len(getattr(pair, side).encode()) + 1 for pair in some) / count * corpus.phrasebook_pairs / BYTES_PER_TOKEN
        for side in SentencePair._fields
    )
    origin = f"estimated from {count:,} pairs of the phrasebook, {BYTES_PER_TOKEN} bytes a token"
    return corpus.phrasebook_pairs, source, target, origin


def _text_bytes(file: Path) -> float:
    return file.stat().st_size * (GZIP_FACTOR if file.suffix == ".gz" else 1.0)


def _bytes_per_line(file: Path) -> float:
    lengths = [len(line) + 1 for line in islice(read_lines(file), SAMPLE)]
    return sum(lengths) / max(1, len(lengths)) or 1.0


def _by_publication(corpus: CorpusConfig) -> tuple[float, float, float, str] | None:
    if corpus.published_pairs is None:
        return None
    tokens = corpus.published_pairs * TOKENS_PER_SENTENCE
    origin = (
        f"published: {corpus.published_pairs:,} pairs; {TOKENS_PER_SENTENCE:.0f} tokens a sentence on both sides are "
        "assumed"
    )
    return corpus.published_pairs, tokens, tokens, origin
