"""Shards of random token ids with the lengths of real text: speed does not depend on what the tokens are."""

from pathlib import Path

import numpy as np

from transloom.pipeline.data.shards import SIDES, shard_name, write_shard
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.files import MANIFEST, write_json

LONGEST = 100  # tokens, as clean.max_words lets them be


def write_random_shards(folder: Path, pairs: int, vocab_size: int, seed: int) -> None:
    """Writes a folder for `open_shards` with the split "train".

    Source lengths are log-normal with a mean of 27 tokens, about that of news text in pieces of a vocabulary of 37,000;
    a target's length is near its source's.
    """
    random = np.random.default_rng(seed)
    source = random.lognormal(np.log(23.0), 0.55, pairs)
    target = source * random.lognormal(0.0, 0.15, pairs)
    folder.mkdir(parents=True, exist_ok=True)
    for side, real_lengths in zip(SIDES, (source, target), strict=True):
        lengths = np.clip(np.rint(real_lengths), 3, LONGEST).astype(np.int64)
        tokens = random.integers(EOS_ID + 1, vocab_size, int(lengths.sum()))
        ends = lengths.cumsum()
        tokens[ends - 1] = EOS_ID
        write_shard(folder, shard_name("train", 0), side, np.split(tokens, ends[:-1]), vocab_size)
    write_json(folder / MANIFEST, {"counts": {"splits": {"train": {"shards": 1, "pairs": pairs}}}})
