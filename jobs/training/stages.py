"""The stages of a run after its data are prepared: the training, then the evaluation."""

from typing import Any

from transloom.jobs.config.schema import Config
from transloom.jobs.runs.report import open_tracker, report_evaluation, report_training
from transloom.jobs.runs.stored import stored
from transloom.jobs.runs.workspace import Run, has_run, only_owner, output_dir, run_for
from transloom.jobs.training.evaluate import evaluate_stage, is_evaluated, kept_result
from transloom.jobs.training.train import is_trained, train_stage
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.tracking.run_page import is_reported


def finish_run(run: Run, prepared: Prepared) -> tuple[dict[str, Any], float | None, float | None]:
    """Does the remaining stages of a run, in a Ray session. Returns the result, and the seconds of training and of
    evaluation, None for a stage that was done before."""
    with only_owner(run), stored(run), open_tracker(run, prepared) as tracker:
        training = train_stage(run)
        report_training(run, tracker)
        result, evaluation = evaluate_stage(run)
        report_evaluation(run, result, tracker)
    return result, training, evaluation


def done_before(config: Config, prepared: Prepared) -> tuple[Run, dict[str, Any]] | None:
    """The run and its result if all stages are done; then neither Ray nor MLflow need to start. Else None."""
    if not has_run(config, prepared):
        return None
    run = run_for(config, prepared)
    with only_owner(run), stored(run):
        reported = not config.tracking.enabled or is_reported(config.tracking, output_dir(config), run.folder)
        result = kept_result(run) if reported and is_trained(run) and is_evaluated(run) else None
    return (run, result) if result else None
