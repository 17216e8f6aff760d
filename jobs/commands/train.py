"""Train: has workers train a run to its end (jobs/training/attempts.py), and says how it went."""

import shlex

from transloom.jobs.cli import configuration
from transloom.jobs.ray_cluster.preflight import checked_session, refuse_missing_tokenizer
from transloom.jobs.runs.model import called
from transloom.jobs.runs.report import open_tracker, report_training
from transloom.jobs.runs.stored import stored
from transloom.jobs.runs.summary import print_cleaning, print_next, print_stages
from transloom.jobs.runs.workspace import Run, only_owner, own_search, run_for
from transloom.jobs.terminal.console import console
from transloom.jobs.training.prepare import found_prepared, prepare_stage
from transloom.jobs.training.train import train_stage
from transloom.jobs.training.trainer import engine_modules, import_trainer


def main(argv: list[str]) -> int:
    config = configuration("train", argv)
    refuse_missing_tokenizer(config)
    prepared = found_prepared(config)
    if prepared:
        print_cleaning(prepared, config.corpus)
    with checked_session(config, import_trainer, engine_modules(config)):
        prepared = prepared or prepare_stage(config)
        run = run_for(config, prepared)
        tell_kept_search(run)
        with only_owner(run), stored(run), open_tracker(run, prepared) as tracker:
            seconds = train_stage(run)
            report_training(run, tracker)
    print_stages({"train": seconds})
    print_next(f"transloom evaluate resume={shlex.quote(called(run))}", "transloom ui")
    return 0


def tell_kept_search(run: Run) -> None:
    """Says where a training's words name another search than the one that the run validates and is evaluated with."""
    own = own_search(run)
    if run.config.decode != own:
        console.print(
            f"Search      the run {run.name} keeps its own, {own.in_words()}; for scores of another one: transloom "
            f"evaluate resume={run.name} decode=…"
        )
