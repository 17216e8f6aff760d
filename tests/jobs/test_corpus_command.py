"""`transloom corpus`; no Ray is started."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from transloom.jobs.commands import corpus
from transloom.jobs.config.compose import load_config
from transloom.jobs.runs.report import cleaning_tables
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.prepare import prepare_corpus
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "checked_session", lambda config: nullcontext())
    monkeypatch.setattr(corpus, "map_over_cluster", map)


def words_of(folder: Path) -> list[str]:
    rows = [(f"the {i} of the text", f"Zeile {i}") for i in range(60)] + [("Привет", "Zeile")] * 3 + [("", "x")]
    (folder / "a.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    (folder / "b.tsv").write_text("".join(f"other {i}\tandere {i}\n" for i in range(30)))
    sources = f"[{{name: a, files: {folder}/a.tsv, licence: CC0}}, {{name: b, files: {folder}/b.tsv, weight: 2}}]"
    return ["corpus=sources", f"corpus.train.sources={sources}", f"output_dir={folder / 'out'}", "corpus.held_out=5"]


def test_a_corpus_is_shown_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(tmp_path)
    assert corpus.main(words) == 0
    output = capsys.readouterr().out
    (picture,) = tmp_path.glob("out/reports/*/corpus.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    report = read_json(picture.with_name("corpus.json"))["report"]
    train = report["train"]
    assert train["pairs"] == 93 - 10
    assert sum(train["lengths"]["source"]) == sum(train["ratios"]) == train["pairs"]
    assert train["scripts"]["source"]["Cyrillic"] == 6 * 3
    assert (train["duplicates"], train["near_duplicates"]) == (2, 80)
    lines = [line.split() for line in output.splitlines()]
    first = next(line for line in lines if line[:2] == ["a", "64"])
    assert first[-1] == "CC0"
    second = next(line for line in lines if line[:2] == ["b", "30"])
    assert int(second[5]) == 2 * int(second[2])  # drawn twice an epoch
    assert f"Picture      {picture}" in output
    assert not list(tmp_path.glob("out/reports/measure-*"))
    assert corpus.main(words) == 0
    assert not (tmp_path / "out" / "shards").exists()


def test_another_task_is_refused() -> None:
    with pytest.raises(UserError, match=r"^task: "):
        corpus.main(["experiment=language_model/demo"])


def test_rules_and_sources_are_tables(tmp_path: Path) -> None:
    config = load_config(words_of(tmp_path))
    stage = prepare_corpus(config.corpus, CleanConfig(), tmp_path / "out")
    tables = cleaning_tables(config, stage.manifest["counts"])
    assert tables["cleaning"]["rule"] == ["empty"]
    assert tables["cleaning"]["example 1"] == ["a.tsv pair 64, empty source:  | x"] or "empty source" in str(tables)
    assert tables["sources"]["source"] == ["a", "b"]
    kept = tables["sources"]["kept"]
    assert tables["sources"]["drawn an epoch"] == [kept[0], 2 * kept[1]]
