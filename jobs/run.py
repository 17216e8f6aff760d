"""Run: the whole pipeline. Finished stages are skipped, an unfinished training goes on from its newest checkpoint."""

from jobs.cli import configuration
from jobs.cluster import ray_session
from jobs.evaluate import evaluate_stage
from jobs.prepare import prepare_stage
from jobs.report import open_tracker, report_evaluation, report_training
from jobs.summary import print_next, print_result, print_stages
from jobs.train import train_stage
from jobs.workspace import only_owner, run_for


def main(argv: list[str]) -> int:
    config = configuration("run", argv)
    with ray_session(config.cluster):
        prepared = prepare_stage(config)
        run = run_for(config, prepared)
        with only_owner(run), open_tracker(run, prepared) as tracker:
            train_seconds = train_stage(run)
            report_training(run, tracker)
            result, evaluate_seconds = evaluate_stage(run)
            report_evaluation(run, result, tracker)
    stages = {name: getattr(prepared, name) for name in ("corpus", "tokenizer", "shards")}
    print_stages(
        {name: None if one.skipped else one.seconds for name, one in stages.items()}
        | {"train": train_seconds, "evaluate": evaluate_seconds}
    )
    print_result(run, result)
    print_next(
        "make ui    (or: transloom ui)  shows this run in MLflow",
        f"transloom translate {run.name} < your_text",
        "transloom run experiment=multi30k_en_de corpus.path=<folder>  trains on a real corpus",
    )
    return 0
