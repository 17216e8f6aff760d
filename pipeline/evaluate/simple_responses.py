"""The simple baselines of prompts and responses, each of which needs no training."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from transloom.pipeline.data.prompts import Example, ResponseMetric
from transloom.pipeline.evaluate.responses import normalized

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
ROWS = 256  # prompts compared with all of train at a time


def simple_responses(
    metric: ResponseMetric, train: Sequence[Example], examples: Sequence[Example]
) -> tuple[str, list[str]] | None:
    """The name of the metric's baseline, and its responses.

    rouge: the first sentence of the template's first field. exact_match: the response of the training example whose
    fields share most words with the example's, by the cosine of their TF-IDF weights. squad: the sentence of the field
    context that shares most words with the field question. symbols: at each place the character that responses of train
    have there most often. None: there are no such fields.
    """
    match metric:
        case ResponseMetric.rouge:
            return "first sentence", [first_sentence(next(iter(example.fields.values()))) for example in examples]
        case ResponseMetric.exact_match:
            return "response of the nearest training prompt", list(_nearest(train, examples))
        case ResponseMetric.squad:
            if not all({"context", "question"} <= example.fields.keys() for example in examples):
                return None
            name = "first sentence that shares most words with the question"
            return name, [most_similar_sentence(e.fields["context"], e.fields["question"]) for e in examples]
        case ResponseMetric.symbols:
            likeliest = likeliest_characters([example.answers[0] for example in train])
            return "likeliest symbol of each place", [likeliest[: len(example.answers[0])] for example in examples]


def sentences(text: str) -> list[str]:
    """The text cut behind full stops, question and exclamation marks that white space follows."""
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip()]


def first_sentence(text: str) -> str:
    """The first sentence of a text, or the text."""
    return next(iter(sentences(text)), text)


def most_similar_sentence(context: str, question: str) -> str:
    """The first sentence of those that share most different words with the question."""
    words = set(normalized(question).split())
    return max(sentences(context) or [context], key=lambda sentence: len(words & set(normalized(sentence).split())))


def likeliest_characters(texts: Sequence[str]) -> str:
    """The most frequent character of each place, of equally frequent ones the first in the order of Unicode."""
    places = (Counter(characters) for characters in zip_longest(*texts, fillvalue=""))
    counts = ({character: count for character, count in place.items() if character} for place in places)
    return "".join(min(place, key=lambda character: (-place[character], character)) for place in counts)


def _nearest(train: Sequence[Example], examples: Sequence[Example]) -> Iterator[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer  # the import takes seconds

    known, asked = ([" ".join(example.fields.values()) for example in part] for part in (train, examples))
    vectorizer = TfidfVectorizer(token_pattern=r"[^\s]+")
    try:
        weights = vectorizer.fit_transform(known).T.tocsc()
    except ValueError:  # no word at all
        yield from (train[0].answers[0] for _ in examples)
        return
    for start in range(0, len(asked), ROWS):
        similar = vectorizer.transform(asked[start : start + ROWS]) @ weights
        for row in similar.toarray():
            yield train[int(row.argmax())].answers[0]
