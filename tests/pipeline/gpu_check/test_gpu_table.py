"""The table says of every part how it ended and why, and what was aimed at."""

from io import StringIO

from rich.console import Console

from transloom.pipeline.gpu_check.outcome import Target
from transloom.pipeline.gpu_check.runner import Record
from transloom.pipeline.gpu_check.table import WIDTH, compare_systems, write_table


def training(name: str, speed: float, peak: int) -> Record:
    figures = {"target_tokens_per_second": {"median": speed}, "peak_bytes": peak}
    target = Target("target tokens/s", speed, 620_000, is_required=False)
    return Record(
        name,
        f"training {name}",
        "passed",
        summary=f"{speed:,.0f} target tokens/s",
        figures=figures,
        targets=[target.as_dict()],
    )


def test_ours_over_the_others_that_were_there() -> None:
    records = [training("base", 600_000, 10), training("base-torch", 200_000, 40), Record("base-marian", "", "failed")]
    (one,) = compare_systems(records, "base", {"base-torch": "torch.nn.Transformer", "base-marian": "Marian"})
    assert one == {"what": "base / torch.nn.Transformer", "target_tokens_per_second": 3.0, "peak_bytes": 0.25}
    assert compare_systems(records[1:], "base", {"base-torch": "torch.nn.Transformer"}) == []


def test_every_part_has_its_row_and_its_reason() -> None:
    records = [
        training("base", 600_000, 10),
        Record("zero1", "ZeRO 1", "failed", "OutOfMemoryError: CUDA out of memory", 12.0),
        Record("demo", "the demo", "skipped", "no GPU"),
    ]
    text = StringIO()
    write_table(Console(width=WIDTH, file=text), records, compare_systems(records, "base", {}))
    for said in ("600,000 target tokens/s", "failed: OutOfMemoryError", "skipped: no GPU", "≥ 620,000", "not met"):
        assert said in text.getvalue()
