"""Stop: end a job on a cluster, with a checkpoint of the step that it is at."""

from transloom.jobs.cli import sort_words
from transloom.jobs.remote.clusters import choose_cluster
from transloom.pipeline.errors import UserError


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("to",))
    if len(words) != 1 or settings:
        raise UserError("stop: name one job: transloom stop <job>; transloom jobs lists them")
    job_id = words[0]
    cluster = choose_cluster(own.get("to"))

    from transloom.jobs.remote.client import Client
    from transloom.jobs.remote.submission import STOP_SECONDS
    from transloom.jobs.runs.summary import print_next
    from transloom.jobs.terminal.console import StatusLine, console

    client = Client(cluster)
    job = client.details(job_id)
    if job.status.is_terminal():
        console.print(f"The job {job_id} has ended before: {job.status.value.lower()}.")
    else:
        client.stop_job(job_id)
        status = StatusLine()
        status.show(f"  {job_id} saves a checkpoint and ends …", now=True)
        job = client.wait_for(job_id, lambda state: state.is_terminal(), STOP_SECONDS + 30.0)
        status.clear()
        if not job.status.is_terminal():
            raise UserError(
                f"{job_id}: has not ended within {STOP_SECONDS + 30:.0f} s; look at transloom logs {job_id}"
            )
        said = [line for line in client.get_job_logs(job_id).split("\n") if line.startswith("transloom: ")]
        console.print(said[-1].removeprefix("transloom: ") if said else f"The job {job_id} has ended.")
    print_next(f"transloom resume {job_id} to={cluster.name}")
    return 0
