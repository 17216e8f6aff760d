"""The lines of a bench: what of them a kill leaves, and what has changed since."""

from pathlib import Path

from transloom.pipeline.bench.kept import TURNS_FILE, begin, changes, go_on, stopped_bench

BASIS = {"machine": {"cores": 2, "flags": ["avx2"]}, "bench": {"rounds": 5}}


def test_what_a_kill_has_torn_is_left_out_and_written_over(tmp_path: Path) -> None:
    kept = begin(tmp_path, BASIS)
    kept.add("training", contender="ours", turn=1)
    kept.add("training", contender="ours", turn=2)
    file = tmp_path / TURNS_FILE
    file.write_bytes(file.read_bytes()[:-5])
    found = stopped_bench(tmp_path)
    assert found is not None and found.of("training") == [{"contender": "ours", "turn": 1}] and found.turns == 1
    go_on(found).add("training", contender="ours", turn=3)
    again = stopped_bench(tmp_path)
    assert again is not None and [line["turn"] for line in again.of("training")] == [1, 3]


def test_a_finished_bench_and_a_damaged_file_are_not_gone_on_with(tmp_path: Path) -> None:
    assert stopped_bench(tmp_path) is None
    begin(tmp_path, BASIS).add("finished")
    assert stopped_bench(tmp_path) is None
    (tmp_path / TURNS_FILE).write_bytes(b'["no", "line"]\n{"kind": "training"}\n')
    assert stopped_bench(tmp_path) is None


def test_a_bench_begun_anew_has_no_lines_of_before(tmp_path: Path) -> None:
    begin(tmp_path, BASIS).add("training", turn=1)
    begin(tmp_path, BASIS)
    found = stopped_bench(tmp_path)
    assert found is not None and not found.turns


def test_what_has_changed_is_named_with_both_values(tmp_path: Path) -> None:
    kept = begin(tmp_path, BASIS)
    assert changes(kept, BASIS) == []
    now = {"machine": {"cores": 4, "flags": ["avx2"]}, "bench": {"rounds": 5}, "model": {"sha256": "1f"}}
    assert changes(kept, now) == ["machine.cores (2 -> 4)", "model.sha256 (nothing -> 1f)"]
