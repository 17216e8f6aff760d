"""COMET in a comparison. What it needs is looked at first, and it is asked last, for it takes longest."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transloom.jobs.compare.systems import Gathered, refuse_other_sources
from transloom.jobs.runs.stopping import ended_by_sigterm
from transloom.jobs.terminal.console import StatusLine, clock, counter
from transloom.pipeline.compare.comparison import add_comet
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.comet import COMMAND, Comet, find_comet, score_sentences

LOG_FILE = "comet.log"


def wanted_comet(own: Mapping[str, str]) -> Comet | None:
    """What `comet=` and `comet_command=` name; None where they are not given.

    Raises:
        UserError: they name nothing that can score.
    """
    if "comet" in own:
        return find_comet(own["comet"], own.get("comet_command", COMMAND))
    if "comet_command" in own:
        raise UserError("comet_command=: name the checkpoint, too: comet=<model.ckpt>")
    return None


def refuse_without_sources(gathered: Gathered) -> None:
    """COMET looks at the sources as well.

    Raises:
        UserError: they are not known, or not those of all runs.
    """
    if gathered.sources is None:
        raise UserError("comet: COMET needs the sources, and files of translations have none: give source=<file>")
    refuse_other_sources(gathered)


def comet_scores(comet: Comet, gathered: Gathered, comparison: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Each sentence's COMET by system; those of the systems, with their tests, are added to the comparison."""
    assert gathered.sources is not None
    status = StatusLine()
    count = counter(status)
    started_at = time.monotonic()

    def progress(done: int, total: int) -> None:
        if done:
            count("scoring with COMET, sentences", done, total)
        else:
            status.show(f"  COMET loads its model, {clock(time.monotonic() - started_at)} …")

    try:
        with ended_by_sigterm():
            progress(0, 0)
            said = {system.name: system.hypotheses for system in gathered.systems}
            scores = score_sentences(comet, said, gathered.sources, gathered.references, folder / LOG_FILE, progress)
            status.show("  reading the checkpoint, for its hash …")
            add_comet(comparison, scores, comet.signature())
    finally:
        status.clear()
    return scores
