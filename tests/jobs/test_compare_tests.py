"""`transloom compare … tests=`: every model on every test set, in one table."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from comparable import REFERENCES, SOURCES, make_corpus, make_run, write_lines

from transloom.jobs.commands.compare import main
from transloom.jobs.config.compose import load_config, read_config
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.model.build import build_model
from transloom.model.config import TransformerConfig
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of, read_json
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import save_model

SMALL = TransformerConfig(d_model=16, d_ff=24, num_heads=2, encoder_layers=1, decoder_layers=1, dropout=0.0)
NEWS = [f"Satz {i} über etwas ganz anderes als Hunde" for i in range(20)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Runs old and tuned with corpora of their own, whose models are real; "old" is evaluated by hand on its own."""
    root = tmp_path_factory.mktemp("outputs")
    captions, news = make_corpus(root), make_corpus(root, "corpus-2", NEWS)
    write_lines(root / "text", [*REFERENCES, *SOURCES, *NEWS])
    pieces = root / "tokenizers" / "pieces"
    pieces.mkdir(parents=True)
    train_tokenizer([root / "text"], TokenizerConfig(vocab_size=320), pieces)
    for name, corpus in (("old", captions), ("tuned", news)):
        words = (f"corpus.name={'captions' if name == 'old' else 'news'}", "decode=greedy")
        folder = make_run(root, name, REFERENCES if name == "old" else NEWS, *words, corpus=corpus)
        torch.manual_seed(len(name))
        weights = build_model(SMALL, Tokenizer.load(pieces).vocab_size).state_dict()
        evaluation = next((folder / "evaluation").iterdir())
        save_model(folder / "model", SMALL, weights, pieces, {"steps": [15, 20], "run": name})
        moved = evaluation_folder(Run(name, folder, read_config(folder / "config.yaml")))
        assert moved is not None
        evaluation.rename(moved)
    return root


def compare(root: Path, *words: str) -> dict:
    main([*words, f"output_dir={root}", "tracking=off"])
    (file,) = (root / "comparisons").glob(f"{words[-1].partition('=')[2]}/comparison.json")
    return read_json(file)


def test_every_model_translates_every_test_set_in_one_table(root, capsys):
    found = compare(root, "old", "tuned", "tests=old,tuned", "name=both")
    said = capsys.readouterr().out
    assert found["order"] == ["captions", "news"]
    captions, news = (found["tests"][name]["systems"] for name in ("captions", "news"))
    # From their evaluations, which are perfect; the other two are made here by nets that have learnt nothing.
    assert captions["old"]["scores"]["bleu"]["score"] == pytest.approx(100)
    assert news["tuned"]["scores"]["bleu"]["score"] == pytest.approx(100)
    assert captions["tuned"]["scores"]["bleu"]["score"] < 5 and news["old"]["scores"]["bleu"]["score"] < 5
    assert news["tuned"]["scores"]["bleu"]["p_randomisation"] < 0.05
    row = re.search(r"^tuned +(\d+\.\d\d) +-(\d+\.\d\d) +< 0\.001 +100\.00 +\+(\d+\.\d\d) +< 0\.001$", said, re.M)
    assert row and float(row[1]) + float(row[2]) == pytest.approx(100, abs=0.011), said
    assert {path.parent.name for path in (root / "comparisons" / "both").glob("*/report.html")} == {"captions", "news"}


def test_files_and_copied_models(root, tmp_path):
    copy = shutil.copytree(root / "runs" / "tuned" / "model", tmp_path / "copied")
    sources, references = write_lines(tmp_path / "s.en", SOURCES[:5]), write_lines(tmp_path / "r.de", REFERENCES[:5])
    found = compare(root, "tuned", str(copy), f"tests={sources}:{references}", "name=files")
    (test,) = found["tests"].values()
    first, second = test["systems"]["tuned"], test["systems"]["copied"]
    assert first["translations"] == second["translations"]  # the same model
    search = load_config(["decode=greedy"]).decode  # of the run
    assert first["translations"] == hash_of(Translator.load(copy, torch.device("cpu")).translate(SOURCES[:5], search))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["old", "tests=old"], "two models"),
        (["old", "old", "tests=old"], "old: is named twice"),
        (["old", "tuned", "tests=old,old"], r"tests: old is the test set of captions again"),
        (["old", "tuned", "tests=nobody"], r"tests: there is no run 'nobody'"),
        (["old", "tuned", "tests="], r"tests: is empty"),
        (["old", "tuned", "tests=gone.en:gone.de"], r"gone\.en"),
        (["old", "tuned", "tests=old", "references=x"], r"references: "),
        (["old", "nobody", "tests=old"], r"there is no run 'nobody'"),
    ],
)
def test_words_that_are_refused(root, words, message):
    with pytest.raises(UserError, match=message):
        main([*words, f"output_dir={root}", "tracking=off"])


def test_sides_of_unequal_lengths_are_refused(root, tmp_path):
    sources, references = write_lines(tmp_path / "s", SOURCES[:5]), write_lines(tmp_path / "r", REFERENCES[:4])
    with pytest.raises(UserError, match=r"^tests: .*/s has 5 lines, and .*/r 4"):
        main(["old", "tuned", f"tests={sources}:{references}", f"output_dir={root}", "tracking=off"])
