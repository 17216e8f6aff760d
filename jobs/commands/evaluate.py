"""Evaluate: average a run's snapshots, translate the validation and test sets on the cluster, score them; or translate
and score any other test set."""

import shlex
from pathlib import Path

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.ray_cluster.preflight import checked_session, refuse_missing_tokenizer
from transloom.jobs.runs.evaluate_on import evaluate_on
from transloom.jobs.runs.model import steps_of_model
from transloom.jobs.runs.report import open_tracker, report_evaluation
from transloom.jobs.runs.stored import stored
from transloom.jobs.runs.summary import print_next, print_result, use_of
from transloom.jobs.runs.workspace import has_run, only_owner, run_for
from transloom.jobs.training.evaluate import evaluate_stage
from transloom.jobs.training.prepare import found_prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CONFIG_FILE, MODEL_FOLDER


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, ["on"])
    if "on" in own:
        config = configuration("evaluate", settings)
        names = words or ([config.resume] if config.resume else [])
        if len(names) != 1:
            raise UserError(usage("evaluate"))
        evaluate_on(names[0], own["on"], config, has_search=any(word.startswith("decode") for word in settings))
        return 0
    config = configuration("evaluate", _with_run(argv))
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


def _with_run(argv: list[str]) -> list[str]:
    """The words with `resume=<run>` in place of a run's name, its folder, or the folder of its model.

    Raises:
        UserError: there are several runs, or the words also have resume=.
    """
    words, _, settings = sort_words(argv)
    if not words:
        return argv
    if len(words) > 1 or any(word.startswith(("resume=", "resolved=")) for word in settings):
        raise UserError(usage("evaluate"))
    folder = Path(words[0])
    is_model = folder.name == MODEL_FOLDER and (folder.parent / CONFIG_FILE).exists()
    return [f"resume={folder.parent if is_model else folder}", *settings]
