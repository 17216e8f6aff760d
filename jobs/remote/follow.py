"""A job's log as it comes, and what a log tells of how far its job is. Needs no ray itself."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transloom.jobs.runs.stopping import EXIT_CODE
from transloom.jobs.runs.summary import print_next
from transloom.jobs.terminal.console import StatusLine, console, is_progress
from transloom.jobs.terminal.printable import print_line
from transloom.pipeline.errors import UserError
from transloom.pipeline.tasks.task import Metric

if TYPE_CHECKING:
    from transloom.jobs.remote.client import Client

START_SECONDS = 60.0
NUMBER = r"(-?\d+(?:\.\d+)?)"  # as `Metric.shown` writes a score


def follow(client: "Client", job_id: str, is_new: bool = False) -> int:
    """Shows the job's log until it ends; its exit code, 130 where Ctrl-C came first, which leaves the job alone.

    Raises:
        UserError: the cluster is gone, could not run the job, or did not start a new one in time.
    """
    status = StatusLine()
    rest = ""

    def show(text: str) -> None:
        nonlocal rest
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            show_line(line, status)

    try:
        if is_new:
            status.show("  waiting for the cluster to start it …", now=True)
            _wait_for_start(client, job_id)
        job = client.follow_log(job_id, show)
    except KeyboardInterrupt:
        status.clear()
        console.print(f"\nThe job {job_id} goes on.")
        print_next(_command("logs", client, job_id, "-f"), _command("stop", client, job_id))
        return 130
    status.clear()
    if rest:
        print_line(rest)
    match job.status.value:
        case "SUCCEEDED":
            console.print(f"\nThe job {job_id} is done.")
            print_next(f"transloom jobs to={client.cluster.name}")
            return 0
        case "STOPPED":
            console.print(f"\nThe job {job_id} was stopped.")
            print_next(_command("resume", client, job_id))
            return EXIT_CODE
        case _:
            if job.driver_exit_code is None:  # it never came to a log
                raise UserError(f"{job_id}: the cluster could not run the job: {(job.message or '').strip()}")
            console.print(f"\nThe job {job_id} failed, with exit code {job.driver_exit_code}.")
            print_next(_command("logs", client, job_id), _command("resume", client, job_id))
            return job.driver_exit_code


def show_line(line: str, status: StatusLine) -> None:
    """A line of a log; those of progress are written over each other on a terminal."""
    if is_progress(line):
        status.show(line, now=True)
    else:
        status.clear()
        print_line(line)


def _wait_for_start(client: "Client", job_id: str) -> None:
    job = client.wait_for(job_id, lambda state: state.value != "PENDING", START_SECONDS)
    if job.status.value == "PENDING":
        client.stop_job(job_id)
        raise UserError(
            f"{job_id}: the cluster has not started the job within {START_SECONDS:.0f} s, so it was taken back: "
            f"{(job.message or 'it gives no reason').strip()}"
        )


def _command(job: str, client: "Client", job_id: str, *more: str) -> str:
    return " ".join(["transloom", job, job_id, *more, f"to={client.cluster.name}"])


@dataclass(frozen=True)
class Progress:
    """How far a job is, as its log tells; empty where it does not. `score` has the metric's title and the set."""

    stage: str = ""
    step: str = ""
    score: str = ""
    mlflow: str = ""


def progress_of(log: str, metric: Metric) -> Progress:
    """From the newest of the lines that jobs/terminal/console.py, jobs/runs/summary.py and a sweep print.

    Args:
        metric: that the job's models are chosen by.
    """

    def newest(pattern: str) -> str:
        found = re.findall(pattern, log, re.MULTILINE)
        return found[-1] if found else ""

    test = newest(rf"^test {re.escape(metric.name)} +{NUMBER}")
    validation = newest(rf"validation {re.escape(metric.title)} {NUMBER}") or _best_of_trials(log, metric)
    score = f"{test} test" if test else f"{validation} validation" if validation else ""
    return Progress(
        stage=newest(r"^Stage: (.+)$"),
        step=_trials_of(log) or newest(r"^  step ([\d,]+/[\d,]+)"),
        score=score and f"{metric.title} {score}",
        mlflow=newest(r"^MLflow +(\S+)$"),
    )


def _trials_of(log: str) -> str:
    """How many of a sweep's trials have ended: of its newest search, which may be that for the best's other seeds."""
    searches = list(re.finditer(r"^(\d+) of (\d+) trials to go", log, re.MULTILINE))
    if not searches:
        return ""
    left, total = map(int, searches[-1].groups())
    ended = re.findall(r"^  trial \d+: (?:finished|stopped|failed)", log[searches[-1].end() :], re.MULTILINE)
    return f"{total - left + len(ended)}/{total} trials"


def _best_of_trials(log: str, metric: Metric) -> str:
    pattern = rf"^  .*?trial \d+[:,] .*?{re.escape(metric.title)} {NUMBER}"
    scores = re.findall(pattern, log, re.MULTILINE)
    return min(scores, key=lambda score: metric.sort_key(float(score)), default="")
