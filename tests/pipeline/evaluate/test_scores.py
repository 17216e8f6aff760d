"""Our scores are sacreBLEU's: its own command, and the published scores of real systems, say the same."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.scores import _score, score
from transloom.pipeline.evaluate.significance import make_metric
from transloom.pipeline.evaluate.tokenizers import DEFAULT


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode().removesuffix("\n").split("\n")


def command_line(hypotheses: Path, references: Path) -> dict[str, dict[str, str]]:
    """What `sacrebleu references -i hypotheses -m bleu chrf` says."""
    words = [str(references), "-i", str(hypotheses), "-m", "bleu", "chrf", "-w", "6"]
    said = subprocess.run([sys.executable, "-m", "sacrebleu", *words], capture_output=True, check=True).stdout
    return {"bleu" if one["name"] == "BLEU" else "chrf": one for one in json.loads(said)}


def test_a_real_system_scores_as_by_the_command(corpora: Path) -> None:
    folder = corpora / "wmt17-en-de-systems"
    hypotheses = folder / "systems" / "newstest2017.uedin-nmt.4722.de"
    ours = score(lines(hypotheses), lines(folder / "ref.de"))
    theirs = command_line(hypotheses, folder / "ref.de")
    for name, one in ours.items():
        assert one.value == pytest.approx(float(theirs[name]["score"]), abs=1e-5)
        assert one.signature == theirs[name]["signature"]


def test_published_scores_of_all_systems(corpora: Path) -> None:
    folder = corpora / "wmt17-en-de-systems"
    references = lines(folder / "ref.de")
    with open(folder / "expected_scores.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    checked = 0
    for row in rows:
        values = list(row.values())
        metric, expected = next((v for v in values if "13a" in str(v)), None), values[-1]
        system = next((v for v in values if str(v).startswith("newstest2017.")), None)
        if metric is None or system is None:
            continue
        said = lines(next((folder / "systems").glob(f"{system}*")))
        found = _score(
            "bleu", make_metric("bleu", DEFAULT), said, [references], False
        ).value  # as `score`, without chrF
        assert found == pytest.approx(float(str(expected)), abs=0.01), system
        checked += 1
    assert checked == 16


def test_equal_to_the_command_on_text_with_odd_line_breaks(tmp_path: Path) -> None:
    said = ["a b c d e\x0b f g", "one\u2028two three four five", "the same here as there"]
    meant = ["a b c d e\x0b f h", "one\u2028two three four six", "the same here as there"]
    for name, text in (("said", said), ("meant", meant)):
        (tmp_path / name).write_bytes("".join(f"{line}\n" for line in text).encode())
    theirs = command_line(tmp_path / "said", tmp_path / "meant")
    for name, one in score(said, meant).items():
        assert one.value == pytest.approx(float(theirs[name]["score"]), abs=1e-5)


def test_perfect_and_empty_translations() -> None:
    meant = ["This is a sentence of words .", "And this is another one ."]
    assert score(meant, meant)["bleu"].value == pytest.approx(100.0)
    assert score(["", ""], meant)["bleu"].value == 0.0


def test_unequal_numbers_are_refused_with_both() -> None:
    with pytest.raises(UserError, match="1 translations, but 2 references"):
        score(["a"], ["a", "b"])


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(UserError, match="no references"):
        score([], [])
