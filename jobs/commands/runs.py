"""Runs: list the runs of an output folder, follow one from another shell, rename, archive and delete them."""

import json
import sys
import time
from pathlib import Path

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.config.compose import read_config
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.listing import as_json, as_table, in_lines, metric_of, progress_of, run_folders, summary_of
from transloom.jobs.runs.upkeep import archive_run, delete_run, refuse_deletion, refuse_move, rename_run, unarchive_run
from transloom.jobs.runs.workspace import find_run, output_dir, user_of
from transloom.jobs.terminal.console import StatusLine, console, quantity, training_line
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import ARCHIVE_FOLDER, CONFIG_FILE

OWN = ("format", "watch", "archived", "yes")
SECONDS = 1.0  # between two looks at a run that is followed
CHANGES = ("rename", "archive", "unarchive", "delete")


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, OWN)
    config = configuration("runs", settings)
    root = output_dir(config)
    flags = {key: _flag(key, own.get(key, "false")) for key in OWN if key != "format"}
    if own.get("format", "table") not in ("table", "json"):
        raise UserError(f"format={own['format']}: there is table, json")
    is_json = own.get("format") == "json"
    if len(words) > 1 and words[0] in CHANGES:
        return _change(words[0], words[1:], config, root, flags["yes"])
    if len(words) > 1 or (words and words[0] in CHANGES):
        raise UserError(usage("runs"))
    if words:
        folder = _found(words[0], root)
        if flags["watch"]:
            _follow(folder, StatusLine(sys.stderr if is_json else None))
        _show(folder, is_json)
        return 0
    if flags["watch"]:
        raise UserError("watch: follows one run; name it: transloom runs <run> watch=true")
    runs = [summary_of(folder) for folder in run_folders(root, flags["archived"])]
    runs.sort(key=lambda run: run.changed)
    if is_json:
        print(json.dumps([as_json(run) for run in runs], indent=1))
    elif runs:
        console.print(as_table(runs, f"Runs in {root}, the newest last"))
    else:
        console.print(f"There are no {'archived ' * flags['archived']}runs in {root}.")
    return 0


def _flag(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise UserError(f"{key}={value}: must be true or false")
    return value == "true"


def _found(name: str, root: Path) -> Path:
    archived = root / ARCHIVE_FOLDER / name
    return archived if (archived / CONFIG_FILE).exists() else find_run(name, root)


def _show(folder: Path, is_json: bool) -> None:
    run, progress = summary_of(folder), progress_of(folder)
    if is_json:
        print(json.dumps(as_json(run) | {"progress": progress}, indent=1))
        return
    for line in in_lines(run, progress):
        console.print(line)


def _follow(folder: Path, status: StatusLine) -> None:
    """Shows the run's line of progress until no process uses the run."""
    metric = metric_of(folder)
    try:
        while user_of(folder) is not None:
            progress = progress_of(folder)
            if metric is not None and progress.get("step") is not None:
                status.show(training_line(progress, metric))
            time.sleep(SECONDS)
    finally:
        status.clear()


def _change(what: str, names: list[str], config: Config, root: Path, is_sure: bool) -> int:
    if what == "rename" and len(names) != 2:
        raise UserError(usage("runs"))
    if what == "rename":
        name, new = names
        told = rename_run(root, name, new, *_store(config, root, name))
        console.print(f"{name} is {new} now; {told}")
        return 0
    if what == "delete":
        folders = [refuse_deletion(root, name) for name in names]
        _ask([summary_of(folder).size_bytes for folder in folders], names, is_sure)
    else:
        for name in names:
            refuse_move(root, name, what == "archive")
    for name in names:
        tells = _store(config, root, name)
        if what == "delete":
            delete_run(root, name, *tells)
        else:
            (archive_run if what == "archive" else unarchive_run)(root, name, *tells)
        places = {"delete": "deleted", "archive": f"in {root / ARCHIVE_FOLDER} now", "unarchive": "a run again"}
        console.print(f"{name}: {places[what]}")
    return 0


def _store(config: Config, root: Path, name: str) -> tuple[bool, str | None]:
    """Whether MLflow is told of a change of a run, and the address given for that; None: the run's own."""
    try:
        reports = read_config(_found(name, root) / CONFIG_FILE).tracking.enabled
    except UserError:  # a damaged run can be removed, too
        reports = True
    return config.tracking.enabled and (reports or config.tracking.uri is not None), config.tracking.uri


def _ask(sizes: list[int], names: list[str], is_sure: bool) -> None:
    """
    Raises:
        UserError: the answer is no, or nobody can be asked.
    """
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise UserError("yes: nobody can be asked here whether to delete; add yes=true")
    what = ", ".join(names)
    try:
        answer = input(f"Delete {what} ({quantity(sum(sizes))}B) with all checkpoints and models? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("delete: nothing is deleted")
