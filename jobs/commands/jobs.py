"""Jobs: list what was submitted to a cluster, and how far it is."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from transloom.jobs.cli import sort_words
from transloom.jobs.remote.clusters import choose_cluster
from transloom.pipeline.errors import UserError
from transloom.pipeline.untrusted import parse_yaml

if TYPE_CHECKING:
    from transloom.pipeline.tasks.build import TaskName

SHOWN = 20
COLUMNS = ("job", "state", "kind", "stage", "step", "score", "workers", "submitted", "MLflow")


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("to",))
    if words or settings:
        raise UserError(f"jobs: takes to=<cluster> only, not {' '.join([*words, *settings])}")
    cluster = choose_cluster(own.get("to"))

    from transloom.jobs.remote.client import Client
    from transloom.jobs.remote.follow import progress_of
    from transloom.jobs.runs.summary import print_next
    from transloom.jobs.terminal.console import console, table
    from transloom.pipeline.tasks.build import selecting_metric

    client = Client(cluster)
    jobs = client.ours()
    if not jobs:
        console.print(f"No job has been submitted to {cluster.name} ({cluster.address}) yet.")
        print_next(f"transloom submit run to={cluster.name}")
        return 0
    rows = []
    for job in jobs[:SHOWN]:
        assert job.submission_id is not None
        about = job.metadata or {}
        metric = selecting_metric(task_of(about), _corpus_of(about))
        progress = progress_of(client.get_job_logs(job.submission_id), metric)
        started = datetime.fromtimestamp((job.start_time or 0) / 1000).strftime("%b %d %H:%M")
        rows.append(
            [
                job.submission_id,
                job.status.value.lower(),
                about.get("transloom_job", ""),
                progress.stage,
                progress.step,
                progress.score,
                about.get("transloom_workers", ""),
                started,
                progress.mlflow,
            ]
        )
    console.print(table(f"Jobs of {cluster.name}", *known_columns(rows), right=(4,)))
    if len(jobs) > SHOWN:
        console.print(f"and {len(jobs) - SHOWN} older ones")
    newest = jobs[0].submission_id
    print_next(f"transloom logs {newest} -f to={cluster.name}")
    return 0


def task_of(metadata: Mapping[str, str]) -> "TaskName":
    """The task of a job that was submitted, by its settings; those of before the setting `task` were translations."""
    from transloom.pipeline.tasks.build import TaskName

    try:
        return TaskName(parse_yaml(metadata["transloom_config"], "the settings of a job")["task"])
    except (UserError, LookupError, TypeError, ValueError):
        return TaskName.translation


def _corpus_of(metadata: Mapping[str, str]) -> Any:
    """The settings of a job's prompts and responses that name their metric; None for another task."""
    from transloom.pipeline.data.prompts import PromptsConfig, ResponseMetric
    from transloom.pipeline.tasks.build import TaskName

    if task_of(metadata) is not TaskName.prompt_response:
        return None
    try:
        corpus = parse_yaml(metadata["transloom_config"], "the settings of a job")["corpus"]
        return PromptsConfig(metric=ResponseMetric(corpus["metric"]))
    except (UserError, LookupError, TypeError, ValueError):
        return PromptsConfig()


def known_columns(rows: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the rows, without MLflow's column where no job has a page on a server."""
    count = len(COLUMNS) if any(row[-1] for row in rows) else len(COLUMNS) - 1
    return list(COLUMNS[:count]), [row[:count] for row in rows]
