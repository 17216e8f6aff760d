"""Questions on paragraphs in SQuAD's JSON (Rajpurkar et al. 2016), split by folds of the paragraphs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transloom.pipeline.data.lines import open_text
from transloom.pipeline.data.records import Record
from transloom.pipeline.errors import UserError

FIELDS = ("context", "question")
ANSWERS = "answers"
MAX_BYTES = 1 << 28  # of a file, which is read whole: SQuAD 1.1's train has 30 MB


def read_squad(file: Path, split: str, fold: int, folds: int) -> Iterator[Record]:
    """Yields the questions of a split in the file's order, with the fields context and question, and the different
    answers in the file's order.

    Args:
        split: test: the paragraphs of fold `fold`. validation: those of the next fold. train: all others.
    Raises:
        UserError: the file is no JSON of SQuAD's form, or a question has no answer; the message names the question.
    """
    paragraphs = list(_paragraphs(file))
    validation = (fold + 1) % folds
    for number, (place, paragraph) in zip(
        paragraph_folds([_text(paragraph, "context", place) for place, paragraph in paragraphs], folds),
        paragraphs,
        strict=True,
    ):
        if split == {fold: "test", validation: "validation"}.get(number, "train"):
            for index, question in enumerate(_list(paragraph, "qas", place)):
                where = f"{place}, question {index + 1}"
                answers = [_text(answer, "text", where) for answer in _list(question, "answers", where)]
                if not answers:
                    raise UserError(f"{where}: has no answer. Leave the question out")
                texts = {"context": _text(paragraph, "context", where), "question": _text(question, "question", where)}
                yield Record(where, texts, {ANSWERS: list(dict.fromkeys(answers))})


def paragraph_folds(contexts: Sequence[str], folds: int) -> list[int]:
    """The fold of each paragraph: a pure function of the paragraphs' texts. Folds are as large as each other to within
    one paragraph, and equal paragraphs are in one fold."""
    digests = {context: hashlib.blake2b(context.encode(), digest_size=16).digest() for context in contexts}
    ranks = {context: rank for rank, context in enumerate(sorted(digests, key=lambda context: digests[context]))}
    return [ranks[context] % folds for context in contexts]


def _paragraphs(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(file) as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(
            f"{file}: has more than {MAX_BYTES:,} bytes. Make records of it: JSON lines, corpus.kind=records"
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON: {error}") from None
    for number, article in enumerate(_list(value, "data", str(file)), start=1):
        place = f"{file}, article {number}"
        for index, paragraph in enumerate(_list(article, "paragraphs", place), start=1):
            yield f"{place}, paragraph {index}", paragraph


def _list(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        raise UserError(f'{place}: has no list "{name}", as JSON of SQuAD\'s form has')
    return value[name]


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get(name), str):
        raise UserError(f'{place}: has no text "{name}", as JSON of SQuAD\'s form has')
    try:
        value[name].encode()
    except UnicodeEncodeError:
        raise UserError(f'{place}: "{name}" has half of a surrogate pair, which is no character') from None
    return value[name]
