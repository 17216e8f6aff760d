"""Prepare: clean a corpus, train its tokenizer, write the shards."""

import shlex

from transloom.jobs.cli import configuration
from transloom.jobs.ray_cluster.preflight import checked_session
from transloom.jobs.runs.stored import store_prepared
from transloom.jobs.runs.summary import print_cleaning, print_next, print_prepared
from transloom.jobs.training.prepare import found_prepared, prepare_stage, refuse_long_sentences
from transloom.pipeline.tasks.build import corpus_baselines, selecting_metric


def main(argv: list[str]) -> int:
    config = configuration("prepare", argv)
    prepared = found_prepared(config)
    if prepared is None:
        with checked_session(config):
            prepared = prepare_stage(config)
    else:
        print_cleaning(prepared, config.corpus)
    store_prepared(config.storage, prepared)
    baselines = corpus_baselines(config.task, prepared.corpus.manifest["counts"])
    print_prepared(prepared, selecting_metric(config.task, config.corpus), baselines)
    refuse_long_sentences(config, prepared.corpus.folder, prepared.shards.folder)
    print_next(shlex.join(["transloom", "train", *argv]))
    return 0
