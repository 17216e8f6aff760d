"""`make chaos ARGS="…"`: see docs/reliability.md."""

import argparse
import os
import platform
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from command import ROOT

from chaos.cases import CASES, run_case, times_of
from chaos.report import CaseResult, exit_code, markdown, write_results
from chaos.soak import soak
from chaos.stall import measure_stall, write_stall
from chaos.training import Place, end_commands, make_reference

WHAT = ("cases", "soak", "stall")


@dataclass(frozen=True)
class Options:
    what: str
    cases: tuple[int, ...]
    times: int
    seed: int
    minutes: float
    out: Path
    keep: bool


def main(argv: list[str]) -> int:
    options = parse(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background has the former ignored
        signal.signal(number, signal.default_int_handler)  # and what was started is ended
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"Seed {options.seed}; trainings in {folder}, results in {options.out}", flush=True)
    place = Place(folder, random.Random(options.seed))
    is_kept = True
    try:
        if options.what == "stall":
            print(write_stall(options.out, measure_stall(place, options.times), machine))
            is_kept = options.keep
            return 0
        results: list[CaseResult] = []
        try:
            if options.what == "soak":
                make_reference(place)
                results = soak(place, options.minutes, lambda text: print(text, flush=True))
                write_results(options.out, results, options.seed, machine)
            else:
                run_cases(place, options, machine, results)
        except AssertionError as error:  # no case's: those are results
            print(f"The undisturbed training failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted; the results so far are kept", flush=True)
            print(markdown(results, options.seed, machine))
            return 130
        print(markdown(results, options.seed, machine))
        is_kept = options.keep or exit_code(results) != 0
        return exit_code(results)
    finally:
        end_commands(place)
        if is_kept:
            print(f"The trainings are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def parse(argv: Sequence[str]) -> Options:
    """The options; a wrong one ends the program with exit code 2 and says which."""
    parser = argparse.ArgumentParser(prog="make chaos", description="Injects faults into real trainings.")
    parser.add_argument(
        "words",
        nargs="*",
        help="soak, stall or, by default, cases; cases=1,5,27 times=10 seed=1 minutes=10 out=<folder> keep=true",
    )
    words = parser.parse_args(argv).words
    what = [word for word in words if word in WHAT] or ["cases"]
    values = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [word for word in words if "=" not in word and word not in WHAT]
    unknown += [name for name in values if name not in ("cases", "times", "seed", "minutes", "out", "keep")]
    if unknown or len(what) > 1:
        parser.error(f"{' '.join(unknown or what)}: not understood")
    try:
        cases = tuple(int(one) for one in values["cases"].split(",")) if "cases" in values else tuple(CASES)
        times, minutes = int(values.get("times", 10)), float(values.get("minutes", 10))
        seed = int(values.get("seed", secrets.randbelow(10**6)))
    except ValueError as error:
        parser.error(str(error))
    if missing := [one for one in cases if one not in CASES]:
        parser.error(f"cases: there is no case {missing[0]}; there are 1 to {max(CASES)}")
    if times < 1 or not 0 < minutes < float("inf"):
        parser.error("times, minutes: must be more than 0")
    out = Path(values.get("out", ROOT / "outputs" / "chaos")).absolute()
    return Options(what[0], cases, times, seed, minutes, out, values.get("keep") == "true")


def run_cases(place: Place, options: Options, machine: str, results: list[CaseResult]) -> None:
    """Runs the cases in turn; `results` and the files have what is finished, after each injection."""
    total = sum(times_of(number, options.times) for number in options.cases)
    done = 0
    if any(CASES[number].inject for number in options.cases):
        print("An undisturbed training first", flush=True)
        make_reference(place)
    started_at = time.monotonic()

    def keep(result: CaseResult) -> None:
        results[:] = [one for one in results if one.number != result.number] + [result]
        write_results(options.out, results, options.seed, machine)

    for number in options.cases:

        def tell(result: CaseResult) -> None:
            nonlocal done
            done += 1
            keep(result)
            one = result.injections[-1]
            minutes = (time.monotonic() - started_at) / done * (total - done) / 60
            count = f"case {result.number}, {len(result.injections)} of {result.wanted}"
            verdict = "survived" if one.survived else f"NOT survived: {one.reason.strip()[:300]}"
            print(f"[{done}/{total}] {count}, {result.fault}: {verdict}; {minutes:.0f} min left", flush=True)

        result = run_case(place, number, options.times, tell)
        if result.not_run:
            done += result.wanted - len(result.injections)
            print(f"[{done}/{total}] case {number}: not run: {result.not_run}", flush=True)
        keep(result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
