"""A run's copy in `storage=`: fetched when the run is missing here, updated while a job works on the run."""

from collections.abc import Iterator
from contextlib import contextmanager

from transloom.jobs.runs.workspace import Run, bring_from, stage_folder
from transloom.jobs.terminal.console import StatusLine, console, counter
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.run_folder import STAGES
from transloom.pipeline.secrets import redacted
from transloom.pipeline.storage.mirror import Mirror, push_stages


@contextmanager
def stored(run: Run) -> Iterator[None]:
    """For the run's owner: fetches the storage's files that this folder lacks, and copies finished files to the storage
    meanwhile. The end of the block waits until all files are copied, and reports a failure.

    Raises:
        UserError: the storage can't be read when the block begins.
    """
    url = run.config.storage
    if url is None:
        yield
        return
    status = StatusLine()
    damaged = bring_from(url, run.folder)
    mirror = Mirror(url, run.folder, [stage_folder(run.folder, stage) for stage in STAGES], damaged)
    mirror.start()
    try:
        yield
    finally:
        trouble = mirror.close(counter(status))
        status.clear()
        if trouble:
            console.print(
                f"Not everything could be stored: {trouble}\nIt is all in {run.folder}; the next command on this run "
                "stores the rest.",
                style="bold",
            )
        elif mirror.copied:
            console.print(f"Stored      {redacted(url)}/runs/{run.name}")


def store_prepared(url: str | None, prepared: Prepared) -> None:
    """Copies the prepared stages into the storage, if there is one.

    Raises:
        UserError: the storage can't be written.
    """
    if url is not None:
        status = StatusLine()
        push_stages(url, [getattr(prepared, stage).folder for stage in STAGES], counter(status))
        status.clear()
