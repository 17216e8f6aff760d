"""Prepare: clean a corpus, train its tokenizer, write the shards."""

from jobs.cli import configuration
from jobs.cluster import map_over_cluster, ray_session
from jobs.config import Config
from jobs.console import StatusLine, counter
from jobs.summary import print_next, print_prepared
from jobs.workspace import output_dir
from pipeline.data.prepare import Prepared, prepare


def main(argv: list[str]) -> int:
    config = configuration("prepare", argv)
    with ray_session(config.cluster):
        prepared = prepare_stage(config)
    print_prepared(prepared)
    print_next(f"transloom train {' '.join(argv)}".rstrip())
    return 0


def prepare_stage(config: Config) -> Prepared:
    """Cleans, learns and tokenises what is not there yet, spread over the cluster.

    Raises:
        UserError: see `pipeline.data.prepare.prepare`.
    """
    status = StatusLine()
    try:
        return prepare(
            config.corpus,
            config.clean,
            config.tokenizer,
            output_dir(config),
            map_tasks=map_over_cluster,
            progress=counter(status),
        )
    finally:
        status.clear()
