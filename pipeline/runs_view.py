"""How MLflow's list of runs is arranged for us: the best test BLEU first, with the columns that tell runs apart, and
the curves that matter.

MLflow's Share button keeps an arrangement as a tag of the experiment, and an address names it. That is what we set. The
form is that of MLflow 3.17's pages, and no promise of theirs: pages that can't read it say so and show their own list.
"""

import json

KEY = "transloom"
TAG = f"mlflow.sharedViewState.{KEY}"
BEST_FIRST = "metrics.`test/bleu`"
WIDTHS = {  # of the columns, in their order, in pixels
    "attributes.`Run Name`": 330,
    "runDateAndNestInfo": 120,  # when it was made
    BEST_FIRST: 90,
    "metrics.`test/chrf`": 80,
    "metrics.`averaged/validation_bleu`": 170,
    "metrics.`training/seconds`": 120,
    "metrics.`training/target_tokens_per_second`": 220,
    "params.`model.architecture`": 130,
    "params.`model.d_model`": 105,
    "params.`model.encoder_layers`": 150,
    "params.`model.decoder_layers`": 150,
    "params.`model.dropout`": 105,
    "params.`schedule.peak_learning_rate`": 190,
    "params.`schedule.warmup_steps`": 170,
    "params.`batch.tokens`": 95,
    "params.`seed`": 55,
    "params.`corpus.name`": 130,
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
        "compareRunSections": [SECTION],
        "compareRunCharts": [{**CHART, "uuid": f"{KEY}-{i}", **chart} for i, chart in enumerate(charts)],
    }
    return json.dumps(view)


def runs_url(server: str, experiment_id: str) -> str:
    """The arranged list of an experiment's runs in the UI that `server` (http://host:port) serves."""
    query = f"viewStateShareKey={KEY}&workflowType=machine_learning"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"
