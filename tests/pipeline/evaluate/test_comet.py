"""COMET by its command, which a stand-in with its options, files and JSON is here."""

import hashlib
import os
import re
import time
from pathlib import Path

import pytest
from comet_score import expected, make_comet

from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.comet import Comet, _share_done, find_comet, score_sentences
from transloom.pipeline.files import read_json

SOURCES = ["a dog runs", "", "two\u2028men sit", "one\rline", "nobody\x85is here"]
REFERENCES = ["ein Hund rennt", "", "zwei Männer sitzen", "eine Zeile", "niemand ist hier"]
SYSTEMS = {
    "one": ["ein Hund rennt", "", "zwei\u2028Männer", "eine\rZeile", "niemand\x85ist hier"],
    "the other, ../of 2": ["der Hund", "etwas", "", "\r", "ist\x0chier"],
}


@pytest.fixture
def comet(tmp_path: Path) -> Comet:
    return find_comet(*map(str, make_comet(tmp_path)))


def scores(comet: Comet, log: Path, **options) -> dict[str, list[float]]:
    return score_sentences(comet, SYSTEMS, SOURCES, REFERENCES, log, **options)


def test_each_sentence_is_scored_in_its_place(comet: Comet, tmp_path: Path) -> None:
    found = scores(comet, tmp_path / "log")
    assert found == {name: pytest.approx(expected(SOURCES, said, REFERENCES)) for name, said in SYSTEMS.items()}
    assert "system-1\tscore: 0." in (tmp_path / "log").read_text()


def test_one_process_scores_all_systems(comet: Comet, tmp_path: Path) -> None:
    scores(comet, tmp_path / "log")
    words = read_json(comet.command.with_name("seen.json"))["words"]
    at = words.index("-t")
    assert words[at + 1 : at + 4] == ["system-0", "system-1", "--model"] and words[at + 4] == str(comet.checkpoint)


def test_it_gets_no_secrets_and_not_our_code(comet: Comet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    withheld = ("MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
    for name in (*withheld, "PYTHONPATH", "TOKENIZERS_PARALLELISM", "HF_HOME", "PGPASSWORD"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    scores(comet, tmp_path / "log")
    environment = read_json(comet.command.with_name("seen.json"))["environment"]
    assert not {*withheld, "PYTHONPATH", "PGPASSWORD"} & set(environment)
    assert environment["HF_HOME"] == environment["TOKENIZERS_PARALLELISM"] == "x"
    assert environment["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    scores(comet, tmp_path / "log")
    assert read_json(comet.command.with_name("seen.json"))["environment"]["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            "fails",
            r"comet-score failed with exit code 1\. .*log; its last lines:\n.*\n.*\nOSError: Can't load tokenizer",
        ),
        ("is killed", "was ended by SIGKILL"),
        ("is no number", "^COMET gave nan to line 2 of the other, ../of 2"),
        ("loses a sentence", "^COMET scored 4 sentences of the other, ../of 2, and there are 5"),
        ("writes something else", r"its scores can't be read \(KeyError: 'system-0'\)"),
    ],
)
def test_failures_are_told(tmp_path: Path, behaviour: str, message: str) -> None:
    comet = find_comet(*map(str, make_comet(tmp_path, behaviour)))
    with pytest.raises(UserError) as caught:
        scores(comet, tmp_path / "log")
    assert re.search(message, str(caught.value))
    for said in (str(caught.value), (tmp_path / "log").read_text()):
        assert "somebody" not in said and ("***@proxy" in said) == (behaviour == "fails")
    assert ("HF_HUB_OFFLINE=0" in str(caught.value)) == (behaviour == "fails")


def test_it_ends_when_it_is_interrupted(tmp_path: Path) -> None:
    comet = find_comet(*map(str, make_comet(tmp_path, "hangs")))
    seen = comet.command.with_name("seen.json")

    def interrupt(done: int, total: int) -> None:
        assert (done, total) == (0, 10)
        deadline = time.monotonic() + 300
        while not (seen.exists() and seen.read_bytes()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores(comet, tmp_path / "log", progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(read_json(seen)["pid"], 0)


def test_the_share_that_is_done() -> None:
    """By what unbabel-comet 2.2.7 draws for two systems."""
    bars = [
        "Predicting: 0it [00:00, ?it/s]",
        *(f"Predicting DataLoader 0:  {at}0%|# | {at}/4 [00:01<00:11]" for at in (0, 1, 2, 3, 4, 4)),
    ]
    first = "\r".join(bars)
    assert _share_done(b"GPU available: False", 2) == _share_done(bars[0].encode(), 2) == 0
    assert _share_done("\r".join(bars[:4]).encode(), 2) == 0.25
    assert _share_done(first.encode(), 2) == 0.5
    assert _share_done(f"{first}\n{bars[0]}\r{bars[1]}\r{bars[2]}".encode(), 2) == 0.625
    assert _share_done(f"{first}\n{first}".encode(), 2) == 1


def test_its_signature(comet: Comet, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"works").hexdigest()
    assert comet.signature() == f"model.ckpt sha256:{digest} unbabel-comet 2.2.7"
    elsewhere = tmp_path / "comet-score"
    elsewhere.write_bytes(comet.command.read_bytes())
    assert Comet(comet.checkpoint, elsewhere).signature().endswith("unbabel-comet of unknown version")
    elsewhere.unlink()
    elsewhere.symlink_to(comet.command)  # as pipx does
    assert Comet(comet.checkpoint, elsewhere).signature().endswith("unbabel-comet 2.2.7")


def test_what_can_not_score_is_refused(comet: Comet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = comet.checkpoint.parents[1]
    (model / "weights.bin").write_bytes(b"x")
    lost = tmp_path / "lost" / "one" / "model.ckpt"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"x")
    for checkpoint, message in (
        ("Unbabel/wmt22-comet-da", "^comet=Unbabel/wmt22-comet-da: no such file.*hf download"),
        (str(model), "is a folder; name the file in it"),
        (str(model / "weights.bin"), r"must end in \.ckpt"),
        (str(lost), f"COMET needs {tmp_path}/lost/hparams.yaml"),
    ):
        with pytest.raises(UserError, match=message):
            find_comet(checkpoint, str(comet.command))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^comet_command=comet-score: no such command.*pip install unbabel-comet"):
        find_comet(str(comet.checkpoint))
    monkeypatch.setenv("PATH", str(comet.command.parent))
    assert find_comet(str(comet.checkpoint)) == comet
