"""Translation: a sentence of one language to a sentence of another."""

from pipeline.tasks.task import Metric

BLEU = Metric("bleu", "BLEU")
