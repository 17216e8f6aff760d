"""`transloom evaluate <run> on=…`: any test set, several references, sacreBLEU's names; scores under own names."""

import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu.dataset import DATASETS
from sacrebleu.metrics import BLEU, CHRF  # pyright: ignore[reportPrivateImportUsage]
from tiny_translator import make_run, make_tokenizer

import transloom.jobs.runs.evaluate_on
from transloom.jobs.commands.evaluate import main
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.run_folder import DRIVER_SPOOL
from transloom.pipeline.tracking.spool import driver_records

SOURCES = ["Der Hund Nummer 3", "Haus 7 Haus 8", "läuft zum Haus"]
FAST = ("decode.beam=1", "decode.extra_tokens=3")
GREEDY = BeamConfig(beam=1, extra_tokens=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path, "first", make_tokenizer(tmp_path / "tokenizer"))
    return tmp_path


def lines_of(path: Path, lines: list[str]) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def evaluate(root: Path, on: str, *words: str) -> dict[str, Any]:
    assert main(["first", f"on={on}", f"output_dir={root}", "tracking=off", *FAST, *words]) == 0
    (result,) = (root / "runs" / "first" / "tests").glob("*/result.json")
    return read_json(result)


def test_several_references_are_scored_as_sacrebleu_does(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    translations = Translator.load(root / "runs" / "first" / "model", torch.device("cpu")).translate(SOURCES, GREEDY)
    references = [[f"{translations[0]} x", "y z", ""], [translations[0], "y", f"{translations[2]} Haus"]]
    source = lines_of(root / "news.en", SOURCES)
    files = [lines_of(root / f"news.{i}.de", lines) for i, lines in enumerate(references)]
    result = evaluate(root, f"{source},{files[0]},{files[1]}")
    assert result["sentences"] == 3 and result["references"] == 2
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = metric.corpus_score(translations, references)
        score = result["scores"][name]
        assert score["value"] == pytest.approx(expected.score)
        assert score["signature"] == str(metric.get_signature()) and "nrefs:2" in score["signature"].replace("var", "2")
        copied = metric.corpus_score(SOURCES, references).score
        assert result["baselines"]["copied source"][name] == pytest.approx(copied)
    printed = capsys.readouterr().out
    assert f"{result['scores']['bleu']['value']:.2f}" in printed and "copied source" in printed
    (hypotheses,) = (root / "runs" / "first" / "tests").glob("news.en-*/hypotheses")
    assert hypotheses.read_bytes().decode().split("\n")[:-1] == translations


def test_mlflow_is_told_under_names_of_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transloom.jobs.runs.evaluate_on, "sync_run", lambda folder, uri: "id")
    source, reference = lines_of(root / "news.en", SOURCES), lines_of(root / "news.de", SOURCES)
    assert main(["first", f"on={source},{reference}", f"output_dir={root}", *FAST]) == 0
    assert main(["first", f"on={source}:{reference}", f"output_dir={root}", *FAST]) == 0
    records = driver_records(root / "runs" / "first")
    metrics = {name: value for record in records for name, value in record.get("metrics", {}).items()}
    apart = "on_news.de_beam1-penalty0.6-extra3_step2"  # neither the run's own search, nor of an ended training
    names = ("bleu", "chrf", "ter", "bleu_of_copied_source", "chrf_of_copied_source")
    assert set(metrics) == {f"{apart}/{name}" for name in names}
    assert metrics[f"{apart}/bleu_of_copied_source"] == 100.0
    tags = {name: value for record in records for name, value in record.get("tags", {}).items()}
    assert tags[f"{apart}.signature.bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert tags[f"{apart}.steps"] == "1, 2"
    assert (root / "runs" / "first" / DRIVER_SPOOL).exists()


def test_two_test_sets_of_one_file_name_have_scores_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transloom.jobs.runs.evaluate_on, "sync_run", lambda folder, uri: "id")
    source = lines_of(root / "news.en", SOURCES)
    for folder, lines in (("a", SOURCES), ("b", SOURCES[::-1]), ("a", SOURCES)):
        (root / folder).mkdir(exist_ok=True)
        reference = lines_of(root / folder / "news.de", lines)
        assert main(["first", f"on={source},{reference}", f"output_dir={root}", *FAST]) == 0
    records = driver_records(root / "runs" / "first")
    logged = {name for record in records for name in record.get("metrics", {}) if name.endswith("/chrf")}
    first, second = sorted(logged, key=len)
    assert first.startswith("on_news.de_beam1") and re.fullmatch(r"on_news\.de-[0-9a-f]{8}_beam1.*", second)


@pytest.fixture
def wmt24(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sacreBLEU's test set, in an empty folder and without a network."""
    folder = tmp_path / "sacrebleu" / "wmt24"
    monkeypatch.setattr(DATASETS["wmt24"], "_outdir", str(folder))
    monkeypatch.setattr(DATASETS["wmt24"], "_rawdir", str(folder / "raw"))

    def no_network(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return folder


def test_a_test_set_by_sacrebleus_name(root: Path, wmt24: Path) -> None:
    (wmt24 / "raw" / "xml").mkdir(parents=True)
    (wmt24 / "raw" / "wmt24.data_onlyxml.tar.gz").write_bytes(b"was downloaded")
    sides = [
        "".join(f'<seg id="{i}">{line}</seg>' for i, line in enumerate(lines, start=1))
        for lines in (SOURCES, ["eins zwei", "drei", "vier"], ["anders"] * 3)
    ]
    (wmt24 / "raw" / "xml" / "wmttest2024.en-de.all.xml").write_text(
        '<dataset id="wmttest2024"><doc id="d" origlang="en" domain="news">'
        f'<src lang="en"><p>{sides[0]}</p></src><ref lang="de" translator="refA"><p>{sides[1]}</p></ref>'
        f'<ref lang="de" translator="refB"><p>{sides[2]}</p></ref></doc></dataset>',
        encoding="utf-8",
    )
    result = evaluate(root, "wmt24")
    assert result["test_set"] == "wmt24" and result["sentences"] == 3
    assert result["references"] == 1, "sacreBLEU names refA as the official one"
    assert result["baselines"]["copied source"]["bleu"] == pytest.approx(
        BLEU().corpus_score(SOURCES, [["eins zwei", "drei", "vier"]]).score
    )


def test_without_a_network_it_says_so(root: Path, wmt24: Path) -> None:
    with pytest.raises(UserError, match=r"^on: sacreBLEU can't get wmt24 \(URLError.*no network"):
        evaluate(root, "wmt24")


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("", r"^on: is empty"),
        ("nothing", r"^on: nothing is neither a run nor a test set"),
        ("wmt14", r"^on: wmt14 has no xx-yy; it has "),
        ("gone.en,gone.de", r"gone\.en"),
        ("{root}/a,{root}/b", r"^on: .*/a has 2 lines, and .*/b 1"),
        ("{root}/a:{root}/b", r"^tests: .*/a has 2 lines, and .*/b 1"),
    ],
)
def test_test_sets_that_are_refused(
    root: Path, on: str, message: str, wmt24: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines_of(root / "a", ["x", "y"])
    lines_of(root / "b", ["x"])
    about = {"source_language": "xx", "target_language": "yy", "steps": []}
    monkeypatch.setattr(transloom.jobs.runs.evaluate_on, "read_about", lambda folder: about)
    with pytest.raises(UserError, match=message):
        evaluate(root, on.format(root=root))


def test_a_command_without_a_run_has_its_usage() -> None:
    with pytest.raises(UserError, match=r"^usage: transloom evaluate"):
        main(["on=wmt24"])
