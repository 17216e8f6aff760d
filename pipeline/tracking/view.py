"""How MLflow's list of runs is arranged for us: the best test BLEU first, with the columns that tell runs apart, and
the curves that matter.

MLflow's Share button keeps an arrangement as a tag of the experiment, and an address names it. That is what we set. The
form is that of MLflow 3.17's pages, and no promise of theirs: pages that can't read it say so and show the experiment's
first page.
"""

import json
from urllib.parse import urlencode

KEY = "transloom"
TAG = f"mlflow.sharedViewState.{KEY}"
BEST_FIRST = "metrics.`test/bleu`"
WIDTHS = {  # of the columns, in their order, in pixels
    "attributes.`Run Name`": 280,
    "runDateAndNestInfo": 125,  # when it was made
    BEST_FIRST: 90,
    "metrics.`test/chrf`": 75,
    "metrics.`validation/bleu`": 110,  # all that most trials of a sweep have
    "metrics.`averaged/validation_bleu`": 165,
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


def shared_view() -> str:
    """The value of the tag: the list, and the charts of all runs; to these MLflow adds one for each other metric."""
    time_and_bleu = {
        axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", "training/seconds"), ("yaxis", "test/bleu"))
    }
    charts = [
        {"type": "BAR", "metricKey": "test/bleu"},
        {"type": "SCATTER", **time_and_bleu},
        *({**CURVE, "metricKey": key, "selectedMetricKeys": [key]} for key in ("validation/bleu", "train/loss")),
    ]
    view = {
        "orderByKey": BEST_FIRST,
        "orderByAsc": False,
        "selectedColumns": [column for column in WIDTHS if column != "runDateAndNestInfo"],
        "columnOrder": list(WIDTHS),
        "columnWidths": WIDTHS,
        "isAccordionReordered": True,  # else sections are sorted by their names
        "compareRunSections": [SECTION],
        "compareRunCharts": [{**CHART, "uuid": f"{KEY}-{i}", **chart} for i, chart in enumerate(charts)],
    }
    return json.dumps(view)


def runs_url(server: str, experiment_id: str, is_arranged: bool) -> str:
    """The list of an experiment's runs, the best first, in the UI that `server` (http://host:port) serves.

    Args:
        is_arranged: whether the experiment has our tag; without it the list is sorted alone.
    """
    sorting = urlencode({"orderByKey": BEST_FIRST, "orderByAsc": "false"})
    query = f"{f'viewStateShareKey={KEY}' if is_arranged else sorting}&workflowType=machine_learning"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"
