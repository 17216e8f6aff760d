"""`transloom compare`: runs and files beside each other, what is refused, and where the comparison goes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from comet_score import expected, make_comet
from command import ROOT
from comparable import BAD, GOOD, REFERENCES, SOURCES, make_corpus, make_run, write_lines
from mlflow_database import give_database
from sacrebleu.metrics.bleu import BLEU

from transloom.jobs.__main__ import main as transloom
from transloom.jobs.commands.compare import main
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the runs "good", "bad" and "other", which has another width; nobody changes it."""
    root = tmp_path_factory.mktemp("outputs")
    corpus = make_corpus(root)
    make_run(root, "good", GOOD, corpus=corpus, bleu=40.0)
    make_run(root, "bad", BAD, corpus=corpus, bleu=25.0)
    make_run(root, "other", GOOD[::-1], "model.d_model=64", "model.num_heads=2", corpus=corpus)
    return root


@pytest.fixture
def root(runs: Path, tmp_path: Path) -> Path:
    """A copy of it, which has been moved as far as the runs know."""
    shutil.copytree(runs, tmp_path / "outputs")
    return tmp_path / "outputs"


def compare(root: Path, *words: str) -> dict:
    """What the command's only comparison in this folder says."""
    main([*words, f"output_dir={root}", "tracking=off"])
    (file,) = (root / "comparisons").glob("*/comparison.json")
    return read_json(file)


def test_two_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(root, "bad", "good")
    said = capsys.readouterr().out
    good = found["systems"]["good"]
    assert found["baseline"] == "bad"
    assert good["scores"]["bleu"]["score"] == pytest.approx(BLEU().corpus_score(GOOD, [REFERENCES]).score)
    assert good["scores"]["bleu"]["p_randomisation"] < 0.05 and good["sentences"]["worse"] == 0
    assert [(row["bucket"], row["sentences"]) for row in found["by_length"]] == [("0-5", 20), ("6-10", 10)]
    assert [row["bucket"] for row in found["by_frequency"]] == ["0", "20-99"]
    assert found["reach"]["bleu"] == 25.0
    assert {name: one["seconds"] for name, one in found["reach"]["runs"].items()} == {"bad": 20.0, "good": 15.0}
    assert good["training"]["target_tokens_per_second"] == 100 and good["training"]["flops"] > 0
    assert found["settings"] == []  # nothing but the name differs
    assert re.search(
        r"^BLEU ↑ +good +[\d.]+ +[\d.]+ to [\d.]+ +\+[\d.]+ +(< )?0\.\d+ +(< )?0\.\d+$", said, re.MULTILINE
    )
    assert "good has" in said and "BLEU: better" not in said and ": better; by chrF2 better, by TER better." in said
    assert "Next:" in said and "transloom translate good" in said


def test_the_report_has_all_of_it_and_shows_translations_as_text(root: Path) -> None:
    compare(root, "bad", "good")
    (folder,) = (root / "comparisons").iterdir()
    html = (folder / "report.html").read_bytes().decode()
    assert "<script" not in html and "alert" in html
    assert "die Katze &lt;b&gt;schläft&lt;/b&gt; &amp; träumt" in html  # the reference
    assert html.count("<article") == 30
    assert html.count("data:image/png;base64,") == 4  # curves and buckets, each in light and dark
    assert {path.name for path in folder.iterdir()} == {
        *("comparison.json", "report.html", "curves.png", "curves-dark.png", "buckets.png", "buckets-dark.png")
    }
    assert "the cat &lt;b&gt;sleeps&lt;/b&gt; &amp; dreams" in html  # the source
    assert 'lang="de"' in html


def test_several_runs_and_a_file_with_differing_settings(root: Path, tmp_path: Path, capsys) -> None:
    theirs = write_lines(tmp_path / "theirs.de", BAD)
    found = compare(root, "good", "other", str(theirs), "reach=10")
    assert found["names"] == ["good", "other", "theirs.de"]
    assert {row["name"]: row["values"] for row in found["settings"]}["model.d_model"] == {"good": "128", "other": "64"}
    assert found["systems"]["theirs.de"]["training"] is None
    assert set(found["reach"]["runs"]) == {"good", "other"} and found["reach"]["bleu"] == 10
    for metric in ("bleu", "chrf", "ter"):
        holm = [found["systems"][name]["scores"][metric] for name in ("other", "theirs.de")]
        assert all(one["p_holm"] >= one["p_randomisation"] for one in holm)
    assert "not corrected for there being several" in capsys.readouterr().out


def test_files_alone(tmp_path: Path) -> None:
    files = [str(write_lines(tmp_path / name, lines)) for name, lines in (("good", GOOD), ("bad", BAD))]
    references = write_lines(tmp_path / "references", REFERENCES)
    words = [*files, f"references={references}", f"train={write_lines(tmp_path / 'train', GOOD)}"]
    found = compare(tmp_path / "outputs", *words, f"source={write_lines(tmp_path / 'source', SOURCES)}")
    assert found["systems"]["bad"]["scores"]["bleu"]["difference"] < 0
    assert found["by_frequency"] and found["reach"] is None and found["data"] == []
    assert found["same_validation_set"]  # there are no runs, and nothing is said of their curves


def test_another_search_of_the_same_run_by_its_folder(root: Path) -> None:
    (evaluation,) = (root / "runs" / "good" / "evaluation").iterdir()
    other = evaluation.with_name("another")
    shutil.copytree(evaluation, other)
    found = compare(root, str(evaluation), str(other))
    assert found["names"] == ["good", "good (another)"]
    assert found["systems"]["good (another)"]["scores"]["bleu"]["p_bootstrap"] == 1.0


def test_comet(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, command = make_comet(tmp_path / "comet")
    theirs = write_lines(tmp_path / "theirs.de", [f"{line} schläft" for line in GOOD])
    words = ["bad", "good", str(theirs), f"comet={checkpoint}", f"comet_command={command}"]
    found = compare(root, *words)
    said = capsys.readouterr().out
    by_hand = {name: mean(expected(SOURCES, its, REFERENCES)) for name, its in (("bad", BAD), ("good", GOOD))}
    good = found["systems"]["good"]["scores"]["comet"]
    assert good["score"] == pytest.approx(by_hand["good"]) and good["low"] < good["score"] < good["high"]
    assert good["difference"] == pytest.approx(by_hand["good"] - by_hand["bad"])
    assert good["p_bootstrap"] < 0.05 and good["p_randomisation"] <= good["p_holm"] < 0.05
    row = (
        rf"^COMET ↑ +good +{by_hand['good']:.4f} +0\.\d{{4}} to 0\.\d{{4}} +\+0\.\d{{4}} +< 0\.001 +< 0\.001 +< 0\.001$"
    )
    assert re.search(row, said, re.MULTILINE)
    assert "by TER better, by COMET better." in said
    signature = found["signatures"]["comet"]
    assert signature.startswith("model.ckpt sha256:") and signature.endswith("unbabel-comet 2.2.7")
    assert f"COMET is by {signature};" in said
    (folder,) = (root / "comparisons").iterdir()
    html = (folder / "report.html").read_bytes().decode()
    assert html.count("COMET ↑") == 3 and f"COMET: {signature}" in html
    assert html.count('<span class="score">COMET ') == 3 * html.count("<article") > 0
    assert "system-2\tscore: " in (folder / "comet.log").read_text()


def test_without_comet_nothing_is_said_of_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(root, "bad", "good")
    assert list(found["signatures"]) == ["bleu", "chrf", "ter"]
    (folder,) = (root / "comparisons").iterdir()
    for text in (capsys.readouterr().out, *(path.read_text() for path in folder.glob("*.[hj]*"))):
        assert "COMET" not in text


def test_what_comet_needs_is_asked_for_first(root: Path, tmp_path: Path) -> None:
    checkpoint, command = make_comet(tmp_path / "comet")
    comet = [f"comet={checkpoint}", f"comet_command={command}"]
    files = [str(write_lines(tmp_path / name, lines)) for name, lines in (("one", GOOD), ("two", BAD))]
    references = f"references={write_lines(tmp_path / 'references', REFERENCES)}"
    assert "files of translations have none: give source=<file>" in refused(root, *files, references, *comet)
    other = f"source={write_lines(tmp_path / 'source', SOURCES[::-1])}"
    assert "the run good translated" in refused(root, "good", files[1], other, *comet)
    assert "comet=<model.ckpt>" in refused(root, "good", "bad", comet[1])
    assert "no such file" in refused(root, "nobody", "nowhere", "comet=Unbabel/wmt22-comet-da")
    assert not command.with_name("seen.json").exists()


def refused(root: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        main([*words, f"output_dir={root}", "tracking=off"])
    assert not (root / "comparisons").exists()
    return str(caught.value)


def test_other_test_sets_are_refused(root: Path, tmp_path: Path) -> None:
    make_run(root, "elsewhere", GOOD, corpus=make_corpus(root, "corpus-2", [*REFERENCES[:-1], "anders"]))
    assert "the run elsewhere was tested on other references than those of the run good" in refused(
        root, "good", "elsewhere"
    )
    references = write_lines(tmp_path / "references", REFERENCES[::-1])
    said = refused(root, "good", "bad", f"references={references}")
    assert "can't be compared" in said and str(references) in said


CHINESE = ["今天红色的房子卖绿色的狗。", "昨天新的猫找到新的狗。", "昨天小的猫卖旧的猫。"] * 5


def test_chinese_files_are_scored_by_chinese_words(tmp_path: Path) -> None:
    files = {
        "ref": CHINESE,
        "perfect": CHINESE,
        "half": [line[::-1] if i % 2 else line for i, line in enumerate(CHINESE)],
    }
    places = {name: str(write_lines(tmp_path / f"{name}.zh", lines)) for name, lines in files.items()}
    words = ("perfect", "half", f"references={places['ref']}", f"train={places['ref']}")
    words = tuple(places.get(word, word) for word in words)
    found = compare(tmp_path, *words, "target_language=zh_CN")
    bleu = {name: one["scores"]["bleu"]["score"] for name, one in found["systems"].items()}
    assert bleu["perfect.zh"] == pytest.approx(100.0)
    assert bleu["half.zh"] == pytest.approx(BLEU(tokenize="zh").corpus_score(files["half"], [CHINESE]).score)
    assert "tok:zh" in found["signatures"]["bleu"]
    assert [(row["bucket"], row["sentences"]) for row in found["by_length"]] == [("6-10", 5), ("11-15", 10)]
    assert [row["bucket"] for row in found["by_frequency"]] == ["5-19", "20-99"]
    shutil.rmtree(tmp_path / "comparisons")
    found = compare(tmp_path, *words, "evaluate.tokenize=char")
    assert "tok:char" in found["signatures"]["bleu"]
    shutil.rmtree(tmp_path / "comparisons")
    assert "target_language=zh" in refused(tmp_path, *words)


def test_a_run_is_compared_with_the_tokenizer_that_it_was_scored_with(root: Path) -> None:
    for name, lines in (("one", CHINESE), ("two", CHINESE[::-1])):
        corpus = make_corpus(root, "chinese", CHINESE)
        make_run(root, name, lines, "corpus.target_language=zho_Hans", corpus=corpus)
    found = compare(root, "one", "two")
    assert found["systems"]["one"]["scores"]["bleu"]["score"] == pytest.approx(100.0)
    assert "tok:zh" in found["signatures"]["bleu"]
    shutil.rmtree(root / "comparisons")
    assert refused(root, "one", "two", "evaluate.tokenize=char").startswith("evaluate.tokenize: ")
    assert refused(root, "good", "bad", "target_language=zh").startswith("target_language: ")


def test_other_signatures_are_refused(root: Path) -> None:
    (file,) = (root / "runs" / "bad").glob("evaluation/*/result.json")
    result = read_json(file)
    result["test"]["bleu"]["signature"] = result["test"]["bleu"]["signature"].replace("tok:13a", "tok:intl")
    write_json(file, result)
    said = refused(root, "good", "bad")
    assert "tok:intl" in said and "tok:13a" in said and "transloom evaluate resume=" in said


def test_translations_that_are_not_those_that_were_scored_are_refused(root: Path) -> None:
    (file,) = (root / "runs" / "bad").glob("evaluation/*/test.hypotheses")
    write_lines(file, GOOD)
    assert "its evaluation says bleu" in refused(root, "good", "bad")


def test_runs_without_an_evaluation_are_refused(root: Path) -> None:
    shutil.rmtree(root / "runs" / "bad" / "evaluation")
    said = refused(root, "good", "bad")
    assert said == (
        "the run bad has not been evaluated with its own search (beam 4, length penalty 0.6): transloom evaluate "
        "resume=bad"
    )
    for left in ("training.json", "model/config.json"):
        (root / "runs" / "other" / left).unlink()
    assert "the run other has no snapshot of its weights yet" in refused(root, "good", "other")


def trained(root: Path, name: str, steps: int) -> None:
    """The run has trained to this step, with a validation each 5 steps."""
    file = root / "runs" / name / "training.json"
    validations = [{"step": step, "loss": 2.0, "bleu": 1.0} for step in range(5, steps + 1, 5)]
    write_json(file, read_json(file) | {"step": steps, "validations": validations})


def test_a_run_that_trained_on_since_its_evaluation_is_refused(root: Path) -> None:
    trained(root, "bad", 30)
    said = refused(root, "good", "bad")
    assert "the run bad has trained on" in said and "transloom evaluate resume=bad" in said
    (folder,) = (root / "runs" / "bad" / "evaluation").iterdir()
    found = compare(root, "good", str(folder))
    earlier = found["systems"]["bad (step 20)"]
    assert earlier["training"]["steps"] == 20 and earlier["training"]["seconds"] == 20.0
    assert earlier["progress"] == "went on to step 30" and earlier["steps_averaged"] == [15, 20]


def test_a_training_that_has_not_ended_is_compared_as_such(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "runs" / "bad" / "training.json").unlink()
    found = compare(root, "good", "bad")
    assert found["systems"]["bad (step 20)"]["training"]["target_tokens"] == 2000
    assert "The training of bad (step 20) has not ended: these are translations of step 20." in capsys.readouterr().out


def test_another_search_is_a_system_of_its_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own,) = (root / "runs" / "good" / "evaluation").iterdir()
    greedy = own.with_name("beam1-penalty0.0-abc")
    shutil.copytree(own, greedy)
    decode = {"beam": 1, "length_penalty": 0.0, "extra_tokens": 50, "batch_sentences": 64}
    more = {"search": "beam 1, length penalty 0", "label": "beam1-penalty0.0", "is_own_search": False, "step": 20}
    write_json(greedy / "result.json", read_json(own / "result.json") | more | {"decode": decode})
    found = compare(root, "good", str(greedy))
    searches = {name: one["search"] for name, one in found["systems"].items()}
    assert searches == {
        "good": "beam 4, length penalty 0.6",
        "good (beam1-penalty0.0)": "beam 1, length penalty 0",
    }
    beams = {row["name"]: row["values"] for row in found["settings"]}["decode.beam"]
    assert beams == {"good": "4", "good (beam1-penalty0.0)": "1"}
    assert "Translations" in capsys.readouterr().out


def test_scores_that_are_too_low_are_no_verdict(root: Path, tmp_path: Path, capsys) -> None:
    nonsense = write_lines(tmp_path / "nonsense", ["x y z w v u"] * 30)
    other = write_lines(tmp_path / "other", ["ein x y z w v u"] * 30)
    references = write_lines(tmp_path / "references", REFERENCES)
    found = compare(root, str(nonsense), str(other), f"references={references}")
    assert found["systems"]["other"]["scores"]["bleu"]["score"] < 1
    assert found["systems"]["other"]["scores"]["chrf"]["p_holm"] < 0.05
    said = capsys.readouterr().out
    assert "below 1 BLEU neither translates" in said and "chrF2 better" not in said and ": better" not in said
    (report,) = (root / "comparisons").glob("*/report.html")
    assert "below 1 BLEU neither translates" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file: is empty"),
        (b"\n\n", "file: is empty"),
        ("\n".join(GOOD[:-1]).encode(), "file has 29 lines, and the references of the run good 30"),
        (b"ein Hund\nein \xff\n", "file, line 2: is not UTF-8"),
    ],
)
def test_broken_files_are_refused(root: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    assert message in refused(root, "good", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "^usage: transloom compare"),
        (["good"], "^there is only good to compare"),
        (["good", "good"], "^good: is named twice"),
        (["good", "godo"], "there is no run 'godo' in .*; the latest there: .*Nor is there a file godo"),
        (["good", "bad", "reach=much"], "^reach=much: must be a score"),
        (["good", "bad", "reach=90"], r"^reach=90: no run reached that; the best validation BLEU is 40\.00"),
        (["good", "bad", "references=nowhere"], "no such file: nowhere"),
        (["good", "query=metrics.x > 1"], "^query: there is no MLflow store"),
        (["good", "bad", "modle=small"], "modle: no such setting"),
    ],
)
def test_words_that_are_refused(runs: Path, words: list[str], message: str) -> None:
    assert re.search(message, refused(runs, *words))


def test_files_without_references_are_refused(tmp_path: Path) -> None:
    files = [str(write_lines(tmp_path / name, GOOD)) for name in ("one", "two")]
    assert refused(tmp_path / "outputs", *files).startswith("references=<file>: name the references")


def test_a_name_is_of_one_comparison(root: Path) -> None:
    compare(root, "good", "bad", "name=mine")
    compare(root, "good", "bad", "name=mine")
    with pytest.raises(UserError, match=r"^name: .*comparisons/mine has a comparison of others"):
        compare(root, "bad", "good", "name=mine")


def test_a_refusal_is_one_message_and_exit_code_2(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transloom(["compare", "good", "nobody", f"output_dir={runs}"]) == 2
    assert capsys.readouterr().err.startswith("transloom: there is no run 'nobody'")


@pytest.mark.slow
def test_in_mlflow_it_is_a_run_and_a_query_finds_runs(
    root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    give_database(tmp_path_factory, root / "mlflow.db")
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.create_experiment("transloom", (root / "mlartifacts").as_uri())
    for at, (name, bleu) in enumerate((("other", 40.0), ("good", 50.0), ("bad", 10.0), ("gone", 60.0)), 1):
        run = client.create_run(experiment, start_time=at, run_name=name)
        client.log_metric(run.info.run_id, "test/bleu", bleu)
        if name != "gone":
            record = root / "runs" / name / "run.json"
            write_json(record, read_json(record) | {"run_id": run.info.run_id})
    checkpoint, command = make_comet(tmp_path / "comet")
    comet = [f"comet={checkpoint}", f"comet_command={command}"]
    main(['query=metrics."test/bleu" > 30', f"output_dir={root}", "name=found", *comet])
    assert "Left out, for they are not in" in capsys.readouterr().out
    found = read_json(root / "comparisons" / "found" / "comparison.json")
    assert found["names"] == ["other", "good"]  # the oldest is the baseline

    (run,) = client.search_runs([experiment], "tags.kind = 'comparison'")
    assert run.info.status == "FINISHED" and run.info.run_name == "compare found"
    good = read_json(root / "runs" / "good" / "run.json")["run_id"]
    assert run.data.tags["compared.1"] == f"good ({good})" and "good has" in run.data.tags["mlflow.note.content"]
    assert run.data.params == {
        "baseline": "other",
        "systems": "other, good",
        "comet": found["signatures"]["comet"],
    }
    for metric in ("bleu", "comet"):
        assert run.data.metrics[f"{metric}/good"] == found["systems"]["good"]["scores"][metric]["score"]
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"report.html", "comparison.json", "figures", "scores.json"}
    table = read_json(Path(client.download_artifacts(run.info.run_id, "scores.json")))
    assert table["columns"][:3] == ["metric", "system", "score"] and len(table["data"]) == 8
    with pytest.raises(UserError, match=r"^MLflow at sqlite"):
        main(["query=nonsense !", f"output_dir={root}"])
    with pytest.raises(UserError, match="finds no run that is in"):
        main(['query=metrics."test/bleu" > 99', f"output_dir={root}"])


@pytest.mark.slow
def test_as_a_command_in_processes_and_without_ray(root: Path) -> None:
    """With enough sentences it takes several processes, which is why it runs in one of its own."""
    many = [f"{line} {number}" for number in range(40) for line in REFERENCES]
    corpus = make_corpus(root, "corpus-3", many)
    for name in ("one", "two"):
        make_run(root, name, [line.replace("ein", name) for line in many], corpus=corpus)
    script = (
        "import sys\n"
        "from transloom.jobs.__main__ import main\n"
        "if __name__ == '__main__':\n"
        f"    code = main(['compare', 'one', 'two', 'output_dir={root}', 'tracking=off'])\n"
        "    assert 'ray' not in sys.modules and 'mlflow' not in sys.modules\n"
        "    sys.exit(code)\n"
    )
    (root / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, root / "script.py"], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "two has" in done.stdout
