"""Run: the whole pipeline. Finished stages are skipped, an unfinished training goes on from its newest checkpoint."""

from transloom.jobs.cli import configuration
from transloom.jobs.ray_cluster.preflight import checked_session, refuse_missing_tokenizer
from transloom.jobs.runs.summary import print_cleaning, print_next, print_result, print_stages, use_of
from transloom.jobs.runs.workspace import run_for
from transloom.jobs.training.prepare import found_prepared, prepare_stage
from transloom.jobs.training.stages import done_before, finish_run
from transloom.jobs.training.trainer import engine_modules, import_trainer
from transloom.pipeline.data.corpus_config import CorpusKind
from transloom.pipeline.data.documents import DocumentsKind


def main(argv: list[str]) -> int:
    config = configuration("run", argv)
    prepared = found_prepared(config)
    if prepared:
        print_cleaning(prepared, config.corpus)
    done = done_before(config, prepared) if prepared else None
    seconds: dict[str, float | None] = dict.fromkeys(("corpus", "tokenizer", "shards", "train", "evaluate"))
    if done:
        run, result = done
    else:
        refuse_missing_tokenizer(config)
        with checked_session(config, import_trainer, engine_modules(config)):
            prepared = prepared or prepare_stage(config)
            for name in ("corpus", "tokenizer", "shards"):
                stage = getattr(prepared, name)
                seconds[name] = None if stage.skipped else stage.seconds
            run = run_for(config, prepared)
            result, seconds["train"], seconds["evaluate"] = finish_run(run, prepared)
    print_stages(seconds)
    print_result(run, result)
    more = {
        CorpusKind.phrasebook: "transloom run experiment=multi30k_en_de  # a real corpus; corpus.path=<folder> offline",
        DocumentsKind.standard_library: "transloom run experiment=language_model/demo corpus=text corpus.train.text=…",
    }.get(config.corpus.kind)
    print_next(
        "transloom ui  # this run in MLflow; from a checkout also: make ui",
        use_of(run, run.name),
        *([more] if more else []),
    )
    return 0
