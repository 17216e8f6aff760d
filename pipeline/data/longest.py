"""Refuses a corpus with a sentence that is too long, before the training and not in its midst."""

from pathlib import Path

import numpy as np

from transloom.pipeline.data.clean import shortened
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.mix import MIX
from transloom.pipeline.data.pairs import open_pairs
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json


def refuse_longer(corpus: Path, shards: Path, split: str, key: str, limit: int) -> None:
    """
    Args:
        corpus, shards: folders of finished stages.
        key: the setting that allows no more than `limit` tokens in a sentence, </s> included.
    Raises:
        UserError: the split has longer sentences; names the longest and, for train and mix, the setting of `clean` that
            leaves such sentences out.
    """
    counts = read_json(shards / MANIFEST)["counts"]["splits"][split]
    longest = max(counts["longest_source"], counts["longest_target"])
    if longest <= limit:
        return
    pairs = open_pairs(shards, split)
    sizes = pairs.lengths.max(axis=1)
    lines = zip(*(read_lines(corpus / f"{split}.{side}") for side in ("source", "target")), strict=True)
    num_bytes = np.empty(len(sizes), np.int64)
    place, text = int(sizes.argmax()), ""
    for i, (source, target) in enumerate(lines):
        num_bytes[i] = max(len(source), len(target))
        if i == place:
            text = (source if pairs.lengths[i, 0] >= pairs.lengths[i, 1] else target).decode()
    message = (
        f"{key}: {limit} is less than the longest sentence of corpus.{split}, {longest} tokens, {num_bytes[place]:,} "
        f"bytes: {shortened(text)} ({(sizes > limit).sum():,} of {len(sizes):,} pairs are longer than {limit}). "
    )
    if split not in ("train", MIX):
        raise UserError(f"{message}Raise it to {longest}, or shorten the sentence; corpus.{split} is never cleaned.")
    enough = int(num_bytes[sizes > limit].min()) - 1
    raise UserError(
        f"{message}Raise it to {longest} at least, or set clean.max_bytes={enough}, which leaves out "
        f"{(num_bytes > enough).sum():,} pairs."
    )
