"""The baselines of classifiers: the most frequent label, and logistic regression on words weighted by TF-IDF, by
scikit-learn with its default settings."""

from collections import Counter
from collections.abc import Mapping, Sequence

MAJORITY = "majority class"
TFIDF = "TF-IDF + logistic regression"
ITERATIONS = 1000  # of the regression, at most


def label_baselines(
    texts: Sequence[str], labels: Sequence[str], others: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> dict[str, dict[str, float]]:
    """The accuracy in percent of models of some texts and labels on other ones, by split and by the model's name.

    Args:
        texts, labels: of train, with two different labels at least.
        others: texts and labels by split. Texts without a word in any of them leave the regression out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    counts = Counter(labels)
    majority = min(counts, key=lambda label: (-counts[label], label))
    results = {split: {MAJORITY: _accuracy([majority] * len(own), own)} for split, (_, own) in others.items()}
    vectorizer = TfidfVectorizer()
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word
        return results
    regression = LogisticRegression(max_iter=ITERATIONS).fit(features, list(labels))
    for split, (own_texts, own) in others.items():
        results[split][TFIDF] = _accuracy(list(regression.predict(vectorizer.transform(own_texts))), own)
    return results


def _accuracy(predicted: Sequence[str], labels: Sequence[str]) -> float:
    return 100.0 * sum(one == other for one, other in zip(predicted, labels, strict=True)) / len(labels)
