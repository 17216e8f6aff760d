"""Sweep: many trainings of one experiment with other settings, to find the best. Each trial is an ordinary run."""

from transloom.jobs.ray_cluster.preflight import checked_session, refuse_missing_tokenizer
from transloom.jobs.runs.summary import print_next, use_of
from transloom.jobs.sweep.search import BEST_FILE, done_before, run_sweep
from transloom.jobs.sweep.settings import (
    refuse_impossible,
    sweep_settings,
)
from transloom.jobs.training.prepare import found_prepared, prepare_stage
from transloom.jobs.training.trainer import engine_modules


def main(argv: list[str]) -> int:
    config, origin = sweep_settings(argv)
    refuse_impossible(config)
    prepared = found_prepared(config)
    if prepared is None or (done := done_before(config, prepared, origin)) is None:
        refuse_missing_tokenizer(config)
        with checked_session(config, modules=engine_modules(config)):
            prepared = prepared or prepare_stage(config)
            done = run_sweep(config, prepared, origin)
    sweep, result = done

    from transloom.jobs.sweep.report import print_sweep

    print_sweep(sweep, result)
    again = [f"transloom run experiment={sweep.folder / BEST_FILE}"] if not result.get("history") else []
    print_next(
        *again,
        use_of(sweep, result["best"]["run"]),
        "transloom ui",
    )
    return 0
