"""Logs: the log of a job on a cluster, all that there is or as it comes."""

from transloom.jobs.cli import sort_words
from transloom.jobs.remote.clusters import choose_cluster
from transloom.pipeline.errors import UserError


def main(argv: list[str]) -> int:
    words, own, options = sort_words(argv, own=("to",))
    if len(words) != 1 or not set(options) <= {"-f", "--follow"}:
        raise UserError("logs: name one job: transloom logs <job> [-f]; transloom jobs lists them")
    cluster = choose_cluster(own.get("to"))

    from transloom.jobs.remote.client import Client
    from transloom.jobs.remote.follow import follow, show_line
    from transloom.jobs.runs.summary import print_next
    from transloom.jobs.terminal.console import StatusLine

    client = Client(cluster)
    job = client.details(words[0])
    if options:
        return follow(client, words[0])
    status = StatusLine()
    for line in client.get_job_logs(words[0]).split("\n"):
        show_line(line, status)
    if not job.status.is_terminal():
        print_next(f"transloom logs {words[0]} -f to={cluster.name}")
    return 0
