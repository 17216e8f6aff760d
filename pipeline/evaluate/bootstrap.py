"""The bootstrap over documents: intervals and paired tests of a ratio of two sums, such as bits over bytes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from transloom.pipeline.evaluate.significance import Tested, holm

RESAMPLES, SEED = 10_000, 12345
LEAST_DOCUMENTS = 10  # of fewer, resamples are too alike to show a chance


def compare_ratios(tops: Mapping[str, np.ndarray], bottom: np.ndarray, resamples: int = RESAMPLES) -> dict[str, Tested]:
    """The ratio sum(top) / sum(bottom) of each system against that of the first, the baseline, by paired bootstrap over
    documents (Koehn 2004). Two-sided p-values count how often a resample's difference is as far from the mean of all
    as the difference is from 0, as sacreBLEU's do; there is no randomisation: `p_randomisation` is None. Of fewer than
    LEAST_DOCUMENTS every p-value is 1.

    Args:
        tops: (documents,) by the system's name. bottom: (documents,), not all 0.
    """
    rng = np.random.default_rng(SEED)
    count = len(bottom)
    stacked = np.stack([*tops.values(), bottom], axis=1).astype(float)  # (documents, systems + 1)
    sums = np.empty((resamples, stacked.shape[1]))
    for i in range(resamples):
        sums[i] = np.bincount(rng.integers(0, count, count), minlength=count) @ stacked
    samples = sums[:, :-1] / np.maximum(sums[:, -1:], np.finfo(float).tiny)  # (resamples, systems)
    total = stacked.sum(axis=0)
    scores = total[:-1] / total[-1]
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    tested = {name: Tested(float(scores[i]), float(low[i]), float(high[i])) for i, name in enumerate(tops)}
    differences = samples - samples[:, :1]
    extreme = np.abs(differences - differences.mean(axis=0)) >= np.abs(scores - scores[0])
    p_values = (extreme.sum(axis=0) + 1) / (resamples + 1)
    p_values[np.isclose(scores, scores[0], rtol=0.0, atol=1e-12)] = 1.0
    if count < LEAST_DOCUMENTS:
        p_values[:] = 1.0
    names = list(tops)[1:]
    corrected = holm([float(p) for p in p_values[1:]])
    for i, (name, p_holm) in enumerate(zip(names, corrected, strict=True), start=1):
        difference = float(scores[i] - scores[0])
        tested[name] = replace(tested[name], difference=difference, p_bootstrap=float(p_values[i]), p_holm=p_holm)
    return tested
