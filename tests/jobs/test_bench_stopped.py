"""A bench that is stopped keeps its turns, shows them, and goes on from there; with stand-ins for the contenders."""

import json
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from command import TINY

from transloom.jobs.__main__ import main
from transloom.jobs.bench import contenders as bench_contenders
from transloom.jobs.bench import decoding as bench_decoding
from transloom.jobs.bench.summary import machine
from transloom.pipeline.bench.config import WARM_UP_STEPS, BenchConfig, Part
from transloom.pipeline.bench.kept import TURNS_FILE, begin
from transloom.pipeline.bench.search import Found, Program, Request
from transloom.pipeline.bench.task import Burst, Ready, Skip
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig

STEPS, ROUNDS, CONTENDERS = 3, 2, 4
WORDS = [word for word in TINY if not word.startswith(("cluster", "engine", "train."))]


class StandIns:
    """In place of a Meeting: contenders that answer at once. `asked` has the requests; `at_turn` is called before each
    turn with how many there have been in this meeting."""

    asked: list[tuple[str, Any]]

    def __init__(self, at_turn: Callable[[int], object]) -> None:
        self.asked, self.at_turn, self.address = [], at_turn, ""

    def __enter__(self) -> "StandIns":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_processes(self, *_: object) -> Callable[[], None]:
        return lambda: None

    def meet(self, name: str, size: int, is_lost: object) -> "StandIn":
        return StandIn(self, name)

    @property
    def turns(self) -> list[str]:
        return [name for name, request in self.asked if request == STEPS or isinstance(request, Request)]


class StandIn:
    size = 1

    def __init__(self, meeting: StandIns, name: str) -> None:
        self.meeting, self.name = meeting, name

    def ask(self, request: Any) -> list[Any]:
        if request == STEPS or isinstance(request, Request):
            self.meeting.at_turn(len(self.meeting.turns))
        self.meeting.asked.append((self.name, request))
        match request:
            case partial():
                return [Ready(threads=1, imported_bytes=10)]
            case Request():
                return [Found([ids[::-1] for ids in request.sources], seconds=2.0, peak_bytes=10)]
            case int():
                return [Burst(2.0, 90, 100, 500.0, 2.0, 100, 0)]
            case float():
                return [1e9]
        return [None]

    def send(self, request: Any) -> None:
        self.answers = self.ask(request)

    def receive(self) -> list[Any]:
        return self.answers


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, StandIns]]:
    """`transloom bench part=train` in `tmp_path`: its exit code, and the contenders that it had."""

    def start_under_ray(*_: object) -> tuple[Callable[[], None], threading.Thread]:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        return lambda: None, thread

    monkeypatch.setattr("transloom.jobs.ray_cluster.session.ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr("transloom.jobs.training.prepare.map_over_cluster", map)
    monkeypatch.setattr(bench_contenders, "_start_under_ray", start_under_ray)
    monkeypatch.setattr(bench_contenders, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_contenders, "cores", lambda: 1)

    def run(*words: str, at_turn: Callable[[int], object] = lambda turn: None) -> tuple[int, StandIns]:
        meeting = StandIns(at_turn)
        monkeypatch.setattr(bench_contenders, "Meeting", lambda: meeting)
        sizes = (f"rounds={ROUNDS}", f"steps={STEPS}", "tracking=off", f"output_dir={tmp_path}")
        return main(["bench", "part=train", *WORDS, *sizes, *words]), meeting

    return run


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "bench").iterdir())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / TURNS_FILE).read_bytes().splitlines()]


def stop_after(turns: int, stop: Callable[[], object]) -> Callable[[int], object]:
    return lambda turn: stop() if turn == turns else None


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def fail() -> NoReturn:
    raise UserError("bench: the contender is gone")


STOPS = {
    "Ctrl-C": (interrupt, 130),
    "SIGTERM": (lambda: signal.raise_signal(signal.SIGTERM), 143),
    "a contender that dies": (fail, 2),
}


@pytest.mark.parametrize("how", STOPS)
def test_a_stopped_bench_shows_its_turns_and_the_same_command_takes_the_others(
    how: str, bench: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop, code = STOPS[how]
    assert bench(at_turn=stop_after(6, stop))[0] == code
    (folder,) = folders(tmp_path)
    result = json.loads((folder / "bench.json").read_bytes())
    assert result["training"]["measured"] == {"turns": 6, "of": ROUNDS * CONTENDERS}
    assert [line["kind"] for line in lines_of(folder)].count("training") == 6
    assert (folder / "bench.png").read_bytes()[:4] == b"\x89PNG"
    assert "after 6 of 8 turns" in capsys.readouterr().out

    code, meeting = bench("tracking.experiment=other")  # on which no figure depends
    assert code == 0 and len(meeting.turns) == 2
    # Those that have had all their turns take no step; the others leave out the pairs of their first turn.
    assert [name for name, request in meeting.asked if request == WARM_UP_STEPS] == sorted(
        meeting.turns, key=list(result["training"]["contenders"]).index
    )
    assert [request for _, request in meeting.asked if isinstance(request, Skip)] == [Skip(STEPS)] * 2
    assert folders(tmp_path) == [folder]
    result = json.loads((folder / "bench.json").read_bytes())
    assert result["training"]["measured"] == {"turns": 8, "of": 8} and "stopped" not in result
    assert {len(one["turns"]) for one in result["training"]["contenders"].values()} == {ROUNDS}
    assert "after 6 turns" in capsys.readouterr().out


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transloom.jobs.commands.bench.draw_bench", lambda result, path: path)


@pytest.mark.usefixtures("no_picture")
def test_a_bench_that_is_stopped_twice_goes_on_twice_and_is_then_done(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    for _ in range(2):
        assert bench("name=one", at_turn=stop_after(3, interrupt))[0] == 130
    code, meeting = bench("name=one")
    assert code == 0 and len(meeting.turns) == 2
    order = [line["contender"] for line in lines_of(tmp_path / "bench" / "one") if line["kind"] == "training"]
    assert order[:4] == order[:3:-1] and len(set(order)) == CONTENDERS
    assert len(bench("name=one")[1].turns) == 8  # a finished one is not gone on with


def test_a_stop_before_the_first_turn_leaves_no_picture(bench: Callable[..., Any], tmp_path: Path) -> None:
    assert bench(at_turn=stop_after(0, interrupt))[0] == 130
    assert not list(tmp_path.glob("bench/*/bench.*"))


@pytest.mark.usefixtures("no_picture")
def test_what_has_changed_is_said_and_all_is_measured_anew(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(at_turn=stop_after(5, interrupt))
    capsys.readouterr()
    assert len(bench("model.d_ff=128", at_turn=stop_after(6, interrupt))[1].turns) == 6
    assert "settings.model.d_ff (64 -> 128)" in " ".join(capsys.readouterr().out.split())

    other = machine(use_gpu=False)
    other["versions"] = {**other["versions"], "torch": "1.0"}
    monkeypatch.setattr("transloom.jobs.commands.bench.machine", lambda use_gpu: other)
    assert len(bench("model.d_ff=128")[1].turns) == 8
    assert "machine.versions.torch (" in " ".join(capsys.readouterr().out.split())


class Letters:
    """A tokenizer whose ids are places in the alphabet."""

    def decode(self, targets: list[list[int]]) -> list[str]:
        return [" ".join("abcdefghij"[i] for i in ids) for ids in targets]


def test_decoding_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [[1, 2, 3, 4, 5], [6, 7, 8, 9], [1, 3, 5, 7, 9]]
    references = Letters().decode([one[::-1] for one in ids])
    sentences = bench_decoding.Sentences(ids, references, Letters(), "13a")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(bench_decoding, "_exported", lambda *_: {Program.huggingface: tmp_path})
    monkeypatch.setattr(bench_decoding, "native_precisions", lambda use_gpu: ["fp32"])
    monkeypatch.setattr(bench_decoding, "cores", lambda: 1)
    kept = begin(tmp_path, {})
    config, settings = BeamConfig(), replace(BenchConfig(), part=Part.decode, rounds=2)

    def measure(at_turn: Callable[[int], object]) -> StandIns:
        meeting = StandIns(at_turn)
        monkeypatch.setattr(bench_decoding, "Meeting", lambda: meeting)
        bench_decoding.measure_decoding(tmp_path, sentences, config, settings, False, kept, lambda *_: None)
        return meeting

    def result() -> dict[str, Any] | None:
        return bench_decoding.decoding_result(tmp_path, sentences, config, settings, kept)

    assert result() is None
    warm_ups = 2
    with pytest.raises(KeyboardInterrupt):
        measure(stop_after(warm_ups + 1, interrupt))
    found = result()
    assert found is not None and found["measured"] == {"turns": 1, "of": 8}
    assert list(found["contenders"]) == ["ours, 1 x 1"] and list(found["contenders"]["ours, 1 x 1"]) == ["4"]
    with pytest.raises(KeyboardInterrupt):
        measure(stop_after(warm_ups + 4, interrupt))
    found = result()
    assert found is not None and found["measured"] == {"turns": 5, "of": 8}
    assert [ratio["value"] for ratio in found["ratios"]] == [1.0] and not found["without_length_penalty"]
    exact = 2
    assert len(measure(lambda turn: None).turns) == warm_ups + 3 + exact
    found = result()
    assert found is not None and found["measured"] == {"turns": 8, "of": 8}
    assert found["contenders"]["Hugging Face, 1 x 1"]["5"]["bleu"] == pytest.approx(100)
    assert found["without_length_penalty"]["Hugging Face"]["identical_to_ours"] == 1.0
    assert kept.of("decoded")
