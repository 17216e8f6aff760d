"""`transloom attend`: its words, where the pictures go, and the run's page in MLflow."""

from pathlib import Path

import pytest
import torch
from mlflow_database import give_database

from transloom.jobs.cli import sort_words
from transloom.jobs.commands import attend
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.model.config import TransformerConfig
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.model_folder import save_model
from transloom.pipeline.run_folder import PREPARED_FILE
from transloom.pipeline.tracking.address import TrackingConfig
from transloom.pipeline.tracking.run_page import is_reported
from transloom.pipeline.tracking.spool import last_status
from transloom.pipeline.tracking.uploader import MlflowTracker

PICTURES = {"alignment.png", "cross.png", "decoder.png", "encoder.png"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the run "mine", whose model is not trained."""
    root = tmp_path_factory.mktemp("outputs")
    give_database(tmp_path_factory, root / "mlflow.db")
    folder = root / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_config([f"output_dir={root}", "name=mine"])), encoding="utf-8")
    write_json(folder / PREPARED_FILE, {})
    (root / "text").write_bytes(b"Ein Hund rennt durch den Schnee.\n" * 20)
    train_tokenizer([root / "text"], TokenizerConfig(vocab_size=300), root)
    config = TransformerConfig(d_model=16, d_ff=16, num_heads=1, encoder_layers=1, decoder_layers=1, max_positions=60)
    torch.manual_seed(0)
    weights = Transformer(config, Tokenizer.load(root).vocab_size).state_dict()
    save_model(folder / "model", config, weights, root, {})
    return root


def test_the_pictures_of_a_run_go_to_its_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attend.main(["mine", "Ein Hund: 1 = 1", f"output_dir={root}", "decode=greedy"]) == 0
    said = capsys.readouterr().out
    (folder,) = (root / "runs" / "mine" / "figures" / "attention").glob("ein-hund-1-1-*")
    assert {path.name for path in folder.iterdir()} == PICTURES
    assert all(str(folder / name) in said for name in PICTURES)
    assert f"transloom attend mine 'Ein Hund: 1 = 1' output_dir={root} decode=greedy log=true" in said


def test_the_pictures_of_a_copied_model_go_to_the_current_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "runs" / "mine" / "model").rename(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    try:
        assert attend.main(["copy", "Schnee!", "Ein Hund."]) == 0
        with pytest.raises(UserError, match=r"^log: .*copy is not in a run's folder"):
            attend.main(["copy", "Schnee!", "log=true"])
    finally:
        (tmp_path / "copy").rename(root / "runs" / "mine" / "model")
    (folder,) = (tmp_path / "attention").iterdir()
    assert folder.name.startswith("schnee-")
    assert {path.name for path in folder.iterdir()} == PICTURES
    assert "translation  Ein Hund.\n" in capsys.readouterr().out


@pytest.mark.slow
def test_on_demand_they_go_to_the_runs_page_which_stays_finished(root: Path) -> None:
    run = root / "runs" / "mine"
    tracker = MlflowTracker(TrackingConfig(system_metrics=False), root, run, "mine", {})
    assert tracker.close("FINISHED", timeout=300)
    assert attend.main(["mine", "Hund", f"output_dir={root}", "log=true", "decode=greedy"]) == 0
    artifacts = root / "mlartifacts" / read_json(run / "run.json")["run_id"] / "artifacts" / "figures" / "attention"
    (folder,) = artifacts.iterdir()
    assert folder.name.startswith("hund-")
    assert {path.name for path in folder.iterdir()} == PICTURES
    assert last_status(run) == "FINISHED" and is_reported(TrackingConfig(), root, run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "^usage: transloom attend"),
        (["mine"], "^usage: transloom attend"),
        (["mine", "a", "b", "c"], "^usage: transloom attend"),
        (["mine", "a", "log=yes"], "^log=yes: "),
        (["mine", "a \udcff"], "is not UTF-8"),
        (["their", "a"], "there is no run 'their'"),
        (["mine", ""], "the sentence is empty"),
        (["mine", "a", "decode.beem=2"], r"^decode\.beem: no such setting"),
    ],
)
def test_what_is_refused(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attend.main([*words, f"output_dir={root}"])


def test_words_are_told_from_settings() -> None:
    sentences = ["E = mc², she said.", "word=another word", "-5 degrees", "-No, he said", "- x"]
    others = ["decode=greedy", "corpus.data_files={a: b}", "output_dir=a b", "--cfg", "job", "+a.b/c@d=1"]
    words, own, settings = sort_words(["run", *sentences, "log=true", *others], ["log"])
    assert words == ["run", *sentences]
    assert own == {"log": "true"}
    assert settings == others
