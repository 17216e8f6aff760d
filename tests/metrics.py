"""Two metrics to score by: one is the better the higher it is, the other the lower."""

from transloom.pipeline.tasks.build import TaskName, selecting_metric
from transloom.pipeline.tasks.task import Metric

BLEU = selecting_metric(TaskName.translation)
PERPLEXITY = Metric("perplexity", "perplexity", higher_is_better=False, digits=1)
