"""Prepares a command's process: streams that take any character, and loopback without the proxy."""

import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

from transloom.jobs.terminal.printable import printable
from transloom.pipeline.secrets import redacted

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def prepare_process() -> None:
    """Prepares this process and its children."""
    take_any_character()
    log_safely()
    reach_loopback_directly()
    # numpy's library would start threads, and no process with threads can be forked (jobs/ray_cluster/fork_server.py).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def take_any_character() -> None:
    """Makes the streams print the escape of a character that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a replaced stream may have none
        if reconfigure:
            reconfigure(errors="backslashreplace")


def log_safely() -> None:
    """Removes secrets and a terminal's control characters from log messages and from tracebacks of bugs."""
    factory = logging.getLogRecordFactory()
    if getattr(factory, "is_safe", False):
        return

    def safe(*args: Any, **options: Any) -> logging.LogRecord:
        record = factory(*args, **options)
        with suppress(Exception):  # a wrong format, which logging reports itself
            record.msg, record.args = printable(redacted(record.getMessage())), ()
            if record.exc_info and record.exc_info[1]:
                record.exc_text = _traceback(record.exc_info[1]).rstrip("\n")  # formatters use exc_text unchanged
        return record

    safe.is_safe = True  # pyright: ignore[reportFunctionMemberAccess]
    logging.setLogRecordFactory(safe)
    sys.excepthook = _print_traceback
    threading.excepthook = _print_traceback_of_thread


def _traceback(error: BaseException) -> str:
    return printable(redacted("".join(traceback.format_exception(error))))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(_traceback(error))


def _print_traceback_of_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_value is not None and raised.exc_type is not SystemExit:
        name = raised.thread.name if raised.thread else "?"
        sys.stderr.write(f"Exception in thread {name}:\n{_traceback(raised.exc_value)}")


def reach_loopback_directly() -> None:
    """Exempts servers on this machine, such as MLflow's and Ray's dashboard, from the environment's proxy."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    # Libraries read the lower-case name first, and some read only one of the two names.
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" in hosts:
        return
    hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
