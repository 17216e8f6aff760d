"""`transloom cluster up | down | status`: a Ray cluster of this machine alone, for jobs that outlive their terminal.

Every process listens on loopback only, and asks for a token that a file of the user's alone holds.
"""

import os

from transloom.jobs.cli import sort_words
from transloom.jobs.remote.local import down, print_status, up
from transloom.pipeline.errors import UserError


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("nodes", "cpus"))
    action = words[0] if len(words) == 1 and not settings else ""
    if action not in ("up", "down", "status") or (own and action != "up"):
        raise UserError("cluster: say what to do: transloom cluster up [nodes=1] [cpus=<of a node>] | down | status")
    match action:
        case "up":
            num_nodes = _count(own, "nodes", 1)
            up(num_nodes, _count(own, "cpus", max(1, (os.cpu_count() or 1) // num_nodes)))
        case "down":
            down()
        case "status":
            print_status()
    return 0


def _count(own: dict[str, str], key: str, default: int) -> int:
    text = own.get(key, str(default))
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{key}: must be a whole number of at least 1, not {text!r}")
    return int(text)
