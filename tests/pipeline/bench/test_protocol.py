"""Contenders live in processes of their own, answer in order, say why they die, and are gone with the driver."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from members import make_adder

from transloom.pipeline.errors import UserError
from transloom.pipeline.processes import Contender, Meeting, busy_seconds, peak_bytes

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).resolve().parents[3])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, HERE]))


def start(meeting: Meeting, name: str, members: int) -> Contender:
    is_lost = meeting.start_processes(name, members, {"OMP_NUM_THREADS": "7"})
    return meeting.meet(name, members, is_lost, timeout=300)


def test_members_keep_their_state_between_turns_and_answer_in_their_order() -> None:
    with Meeting() as meeting:
        one, two = start(meeting, "one", 1), start(meeting, "two", 2)
        (first,), others = one.ask(partial(make_adder, 100)), two.ask(partial(make_adder, 0))
        assert len({os.getpid(), first, *others}) == 4
        assert one.ask(5) == [(105, "7")]
        assert two.ask(1) == [(1, "7"), (1, "7")]
        two.send(10, 20)  # each its own
        assert one.ask(5) == [(110, "7")]
        assert two.receive() == [(11, "7"), (21, "7")]
    assert not any(psutil.pid_exists(pid) for pid in (first, *others))
    assert not meeting.folder.exists()


def test_a_refusal_is_the_users_and_a_bug_keeps_its_traceback() -> None:
    with Meeting() as meeting:
        one = start(meeting, "one", 1)
        one.ask(partial(make_adder, 0))
        with pytest.raises(UserError, match=r"^seed: is wrong$"):
            one.ask(0)
        with pytest.raises(RuntimeError, match=r"(?s)one failed.*members\.py.*a bug"):
            one.ask(-1)
        assert one.ask(4) == [(4, "7")]  # and it goes on


def test_who_dies_is_named_with_its_last_words() -> None:
    with Meeting() as meeting:
        one = start(meeting, "one", 1)
        one.ask(partial(make_adder, 0))
        with pytest.raises(UserError, match=r"contender one is gone: exit codes \[3\]; it said: a last word"):
            one.ask(-2)


def test_who_never_comes_is_named() -> None:
    with Meeting() as meeting:
        is_lost = meeting.start_processes("one", 1, {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"})
        with pytest.raises(UserError, match="contender one did not start: exit codes"):
            meeting.meet("one", 1, is_lost, timeout=300)
        with pytest.raises(UserError, match="did not start within 1 s"):
            meeting.meet("nobody", 1, lambda: None, timeout=1)


def test_no_member_outlives_a_driver_that_is_killed() -> None:
    code = (
        "import os; from functools import partial; from members import make_adder\n"
        "from transloom.pipeline.processes import Meeting\n"
        "meeting = Meeting(); is_lost = meeting.start_processes('one', 1, {})\n"
        "print(meeting.meet('one', 1, is_lost).ask(partial(make_adder, 0))[0], meeting.folder, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(said[0])).wait(300)
    assert not psutil.pid_exists(int(said[0]))
    for path in Path(said[1]).iterdir():
        path.unlink()
    Path(said[1]).rmdir()


def test_memory_and_time_are_those_of_the_machine() -> None:
    before = peak_bytes()
    unused = before - psutil.Process().memory_info().rss  # what earlier tests took and gave back
    block = bytearray(os.urandom(1 << 20) * (64 + max(0, unused >> 20)))
    assert peak_bytes() - before > 32 << 20
    del block
    busy, _ = busy_seconds()
    while busy_seconds()[0] - busy < 0.05:  # ends, since this is work
        sum(range(100_000))
