"""Translation: a sentence of one language to a sentence of another."""

from pipeline.tasks.task import Metric

# Below 1 BLEU next to no four-gram is right: see `LEAST_BLEU` in pipeline/evaluate/significance.py.
BLEU = Metric("bleu", "BLEU", limits=(0.0, 100.0), trivial=1.0)
