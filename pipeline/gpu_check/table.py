"""The check as text: a row for each part, the targets, and how ours compares with the others."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from transloom.pipeline.gpu_check.runner import FAILED, SKIPPED, Record

WIDTH = 150
REASON = 300  # characters of why a part did not pass


def compare_systems(records: Sequence[Record], ours: str, others: Mapping[str, str]) -> list[dict[str, Any]]:
    """Ours over each other system, by the medians of target tokens/s and by peak memory.

    Args:
        ours: the part of ours. others: by the name of their part, what they are.
    """
    by_name = {record.name: record.figures for record in records if record.figures}
    if ours not in by_name:
        return []
    mine = by_name[ours]
    return [
        {
            "what": f"{ours} / {label}",
            "target_tokens_per_second": mine["target_tokens_per_second"]["median"]
            / by_name[name]["target_tokens_per_second"]["median"],
            "peak_bytes": mine["peak_bytes"] / by_name[name]["peak_bytes"],
        }
        for name, label in others.items()
        if name in by_name
    ]


def write_table(console: Console, records: Sequence[Record], ratios: Sequence[Mapping[str, Any]]) -> None:
    table = Table("part", "", "s", "found")
    for record in records:
        found = record.summary
        if record.status in (FAILED, SKIPPED):
            found = f"{record.status}: {record.why[:REASON]}{f' ({found})' if found else ''}"
        table.add_row(record.what, record.status, f"{record.seconds:.0f}", found)
    console.print(table)
    rows = [(record.what, target) for record in records for target in record.targets]
    if rows:
        table = Table("part", "target", "measured", "goal", "")
        for what, target in rows:
            sign = "≥" if target["at_least"] else "≤"
            verdict = "met" if target["is_met"] else "not met"
            table.add_row(what, target["what"], f"{target['value']:,.5g}", f"{sign} {target['goal']:,g}", verdict)
        console.print(table)
    if ratios:
        table = Table("training", "target tokens/s", "peak memory")
        for one in ratios:
            table.add_row(one["what"], f"{one['target_tokens_per_second']:.2f}", f"{one['peak_bytes']:.2f}")
        console.print(table)
