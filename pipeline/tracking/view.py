"""How MLflow's list of runs is arranged: the best test score first, with the columns that tell runs apart, and the
curves that matter.

MLflow's Share button keeps an arrangement as a tag of the experiment, and an address names it. The tracker sets such a
tag for each metric that runs of the experiment are chosen by. The form is that of MLflow 3.17's pages, and no promise
of theirs: pages that can't read it say so and show the experiment's first page.
"""

import json
from urllib.parse import urlencode

from transloom.pipeline.tasks.task import Metric

KEY = "transloom"
WIDTHS = {  # of the columns after those of the scores, in their order, in pixels
    "metrics.`training/seconds`": 120,
    "params.`model.architecture`": 125,
    "params.`model.d_model`": 100,
    "params.`model.encoder_layers`": 145,
    "params.`model.decoder_layers`": 145,
    "params.`model.dropout`": 100,
    "params.`schedule.peak_learning_rate`": 185,
    "params.`schedule.warmup_steps`": 165,
    "params.`batch.tokens`": 90,
    "params.`seed`": 55,
    "params.`corpus.name`": 130,
    "metrics.`training/target_tokens_per_second`": 215,
    "attributes.`Models`": 200,
    "attributes.`Dataset`": 300,
}
SECTION = {"uuid": KEY, "name": "which run is best", "display": True, "isReordered": False, "deleted": False}
CHART = {"metricSectionId": KEY, "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
CURVE = {
    "type": "LINE",
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "lineSmoothness": 0,
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
    "selectedXAxisMetricKey": "",
    "range": {},
}


def view_key(metric: Metric) -> str:
    """The name of the arrangement by this metric, in addresses: runs of two tasks may share an experiment."""
    return f"{KEY}-{metric.name}"


def view_tag(metric: Metric) -> str:
    """The experiment's tag that holds the arrangement."""
    return f"mlflow.sharedViewState.{view_key(metric)}"


def shared_view(metric: Metric) -> str:
    """The value of the tag: the list, and the charts of all runs; to these MLflow adds one for each other metric."""
    test, validation = f"test/{metric.name}", f"validation/{metric.name}"
    time_and_score = {
        axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", "training/seconds"), ("yaxis", test))
    }
    charts = [
        {"type": "BAR", "metricKey": test},
        {"type": "SCATTER", **time_and_score},
        *({**CURVE, "metricKey": key, "selectedMetricKeys": [key]} for key in (validation, "train/loss")),
    ]
    widths = {
        "attributes.`Run Name`": 280,
        "runDateAndNestInfo": 125,  # when it was made
        _column(metric): 90,
        f"metrics.`{validation}`": 110,  # all that most trials of a sweep have
        f"metrics.`averaged/validation_{metric.name}`": 165,
        **WIDTHS,
    }
    view = {
        "orderByKey": _column(metric),
        "orderByAsc": not metric.higher_is_better,
        "selectedColumns": [column for column in widths if column != "runDateAndNestInfo"],
        "columnOrder": list(widths),
        "columnWidths": widths,
        "isAccordionReordered": True,  # else sections are sorted by their names
        "compareRunSections": [SECTION],
        "compareRunCharts": [{**CHART, "uuid": f"{KEY}-{i}", **chart} for i, chart in enumerate(charts)],
    }
    return json.dumps(view)


def _column(metric: Metric) -> str:
    return f"metrics.`test/{metric.name}`"


def runs_url(server: str, experiment_id: str, metric: Metric, key: str | None) -> str:
    """The list of an experiment's runs, the best first, in the UI that `server` (http://host:port) serves.

    Args:
        key: of the arrangement that the experiment has; None: it has none, so the list is sorted alone.
    """
    ascending = str(not metric.higher_is_better).lower()
    sorting = urlencode({"orderByKey": _column(metric), "orderByAsc": ascending})
    query = f"{urlencode({'viewStateShareKey': key}) if key else sorting}&workflowType=machine_learning"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"
