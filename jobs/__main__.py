"""`transloom <job> …`, also `python -m transloom <job> …`: finds the job, and turns its outcome into an exit code."""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from transloom.jobs.cli import print_help, print_jobs, print_topic, print_versions
from transloom.jobs.command_table import COMMANDS
from transloom.jobs.runs.environment import prepare_process
from transloom.jobs.runs.stopping import EXIT_CODE, Terminated
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.disk import disk_trouble
from transloom.pipeline.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """0: done. 1: a bug, with its traceback. 2: the user's to mend, a full disk too, in one message. 130: stopped by
    Ctrl-C. 141: nobody reads its output. 143: ended by SIGTERM."""
    prepare_process()
    words = list(sys.argv[1:] if argv is None else argv)
    job, rest = words[0] if words else "help", words[1:]
    try:
        if job == "help" and (topics := [word for word in rest if not word.startswith("-")]):
            for topic in topics:
                print_topic(topic)
            return 0
        if job in ("-h", "--help", "help"):
            print_jobs()
            return 0
        if job in ("--version", "-V"):
            print_versions()
            return 0
        if job not in COMMANDS:
            raise UserError(_unknown(job))
        if "-h" in rest or "--help" in rest:
            print_help(job)
            return 0
        code = importlib.import_module(f"transloom.jobs.commands.{job}").main(rest)
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it
        return code
    except UserError as error:
        print(f"transloom: {printable(str(error))}", file=sys.stderr)
        return 2
    except Terminated as end:
        print(f"transloom: {end}.", file=sys.stderr)
        return EXIT_CODE
    except BrokenPipeError:  # `transloom plan | head`: who read it has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own last flush fails, too
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(
            "\ntransloom: interrupted. Finished stages and checkpoints are kept: the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        message = _full_output(error) or disk_trouble(error, _output_dir(rest))
        if message is None:
            raise
        print(f"transloom: {message}", file=sys.stderr)
        return 2


def _unknown(job: str) -> str:
    if "=" in job:
        return f"{job}: settings come after the job, for example: transloom run {job}"
    nearest = difflib.get_close_matches(job, COMMANDS, n=1)
    return (
        f"{job}: no such job.{f' Did you mean {nearest[0]}?' if nearest else ''} The jobs are: {', '.join(COMMANDS)}."
    )


def _full_output(error: BaseException) -> str | None:
    """A message where what can't be written is this command's output, as in `transloom run > log` on a full disk."""
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as refusal:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own last flush fails, too
        return f"this command's output can't be written: {refusal.strerror}. Send it elsewhere; what is done is kept"
    return None


def _output_dir(words: Sequence[str]) -> Path:
    given = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
    return Path(given[-1] if given else "outputs")


if __name__ == "__main__":
    sys.exit(main())
