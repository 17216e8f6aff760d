"""Run: the whole pipeline. Finished stages are skipped, an unfinished training goes on from its newest checkpoint."""

from typing import Any

from jobs.cli import configuration
from jobs.config import Config
from jobs.evaluate import evaluate_stage, evaluated_before
from jobs.preflight import checked_session, refuse_missing_tokenizer
from jobs.prepare import found_prepared, prepare_stage
from jobs.report import open_tracker, report_evaluation, report_training
from jobs.stored import stored
from jobs.summary import print_cleaning, print_next, print_result, print_stages
from jobs.train import import_trainer, is_trained, train_stage
from jobs.workspace import Run, has_run, only_owner, output_dir, run_for
from pipeline.data.corpus import CorpusKind
from pipeline.data.prepare import Prepared
from pipeline.tracking import is_reported


def main(argv: list[str]) -> int:
    config = configuration("run", argv)
    prepared = found_prepared(config)
    if prepared:
        print_cleaning(prepared)
    done = done_before(config, prepared) if prepared else None
    seconds: dict[str, float | None] = dict.fromkeys(("corpus", "tokenizer", "shards", "train", "evaluate"))
    if done:
        run, result = done
    else:
        refuse_missing_tokenizer(config)
        with checked_session(config, import_trainer):
            prepared = prepared or prepare_stage(config)
            for name in ("corpus", "tokenizer", "shards"):
                stage = getattr(prepared, name)
                seconds[name] = None if stage.skipped else stage.seconds
            run = run_for(config, prepared)
            result, seconds["train"], seconds["evaluate"] = finish_run(run, prepared)
    print_stages(seconds)
    print_result(run, result)
    more = ["transloom run experiment=multi30k_en_de  # a real corpus; corpus.path=<folder> where there is no network"]
    print_next(
        "transloom ui  # this run in MLflow; from a checkout also: make ui",
        f"transloom translate {run.name} < your_text",
        *(more if config.corpus.kind is CorpusKind.phrasebook else []),
    )
    return 0


def finish_run(run: Run, prepared: Prepared) -> tuple[dict[str, Any], float | None, float | None]:
    """What is left of a run, in a Ray session: its result, and the seconds of training and of evaluation, None where
    that was done before."""
    with only_owner(run), stored(run), open_tracker(run, prepared) as tracker:
        training = train_stage(run)
        report_training(run, tracker)
        result, evaluation = evaluate_stage(run)
        report_evaluation(run, result, tracker)
    return result, training, evaluation


def done_before(config: Config, prepared: Prepared) -> tuple[Run, dict[str, Any]] | None:
    """A run that has nothing left to do, and its result: then neither Ray nor MLflow need to start."""
    if not has_run(config, prepared):
        return None
    run = run_for(config, prepared)
    with only_owner(run), stored(run):
        reported = not config.tracking.enabled or is_reported(config.tracking, output_dir(config), run.folder)
        result = evaluated_before(run) if reported and is_trained(run) else None
    return (run, result) if result else None
