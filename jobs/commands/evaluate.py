"""Evaluate: average a run's snapshots, translate the validation and test sets on the cluster, score them."""

import shlex

from jobs.cli import configuration
from jobs.ray_cluster.preflight import checked_session, refuse_missing_tokenizer
from jobs.runs.model import steps_of_model
from jobs.runs.report import open_tracker, report_evaluation
from jobs.runs.stored import stored
from jobs.runs.summary import print_next, print_result, use_of
from jobs.runs.workspace import has_run, only_owner, run_for
from jobs.training.evaluate import evaluate_stage
from jobs.training.prepare import found_prepared
from pipeline.errors import UserError
from pipeline.run_folder import MODEL_FOLDER


def main(argv: list[str]) -> int:
    config = configuration("evaluate", argv)
    prepared = found_prepared(config)
    if prepared is None or not has_run(config, prepared):
        raise UserError(
            "evaluate: nothing of this configuration is trained yet; name a run with resume=<run>, or train"
        )
    run = run_for(config, prepared)
    if config.storage is None:
        steps_of_model(run)  # refuses, before Ray starts, where there is nothing to evaluate
    refuse_missing_tokenizer(config)
    tracking = open_tracker(run, prepared, keep_status=True)
    with checked_session(config), only_owner(run), stored(run), tracking as tracker:
        result, _ = evaluate_stage(run)
        report_evaluation(run, result, tracker)
    print_result(run, result)
    print_next(use_of(run, shlex.quote(str(run.folder / MODEL_FOLDER))), "transloom ui")
    return 0
