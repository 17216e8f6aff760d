"""`transloom attend part=…` on runs of its own kinds: what is written, printed and refused."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from transloom.jobs.commands import attend
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.model_folder import save_model
from transloom.pipeline.run_folder import FIGURES_FOLDER, PREPARED_FILE
from transloom.pipeline.tasks.build import make_task, prepare_data

COPY = ("experiment=probe/copy_memory", "model.max_positions=51", "corpus.synthetic.length=30")
COPY = (*COPY, "corpus.synthetic.examples=40", "corpus.synthetic.held_out=12")
TEXT = ("experiment=language_model/demo", "corpus=text", "tokenizer=characters", "model.max_positions=16")
TEXT = (*TEXT, "model.layers=1", "model.d_model=16", "model.d_ff=16", "model.num_heads=2")
PAIRS = ("experiment=demo", "corpus=text", "corpus.name=words", "tokenizer.vocab_size=290", "train.validation_beam=1")
PAIRS = (*PAIRS, "model.d_model=16", "model.d_ff=16", "model.num_heads=2", "model.encoder_layers=1")


def write_run(root: Path, name: str, words: tuple[str, ...]) -> None:
    """A run whose model is not trained, in the output folder `root`."""
    config = load_config([*words, f"output_dir={root}", f"name={name}"])
    prepared = prepare_data(config, root)
    folders = {"corpus": prepared.corpus.folder, "tokenizer": prepared.tokenizer.folder}
    folders["shards"] = prepared.shards.folder
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / PREPARED_FILE, {stage: str(path) for stage, path in folders.items()})
    torch.manual_seed(0)
    weights = make_task(config, folders.__getitem__).model().state_dict()
    about = {"task": config.task.value}
    if config.languages:
        about |= dict(zip(("source_language", "target_language"), config.languages, strict=True))
    save_model(folder / "model", config.model, weights, folders["tokenizer"], about)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    write_run(root, "copy", COPY)
    write_run(root, "lstm", (*COPY, "model=lm_lstm"))
    for split in ("train", "validation"):
        (root / split).mkdir()
        for number in range(6):
            (root / split / f"{number}.txt").write_text(f"{split} {number}, then a word, and a word. " * (1 + number))
    for split in ("train", "validation", "test"):
        (root / f"{split}.en").write_text("A dog, a cat.\nA cat runs.\nTwo dogs run.\n" * 8)
        (root / f"{split}.de").write_text("Ein Hund, eine Katze.\nEine Katze rennt.\nZwei Hunde rennen.\n" * 8)
    folders = (f"corpus.{split}.text={root}/{split}/*.txt" for split in ("train", "validation"))
    text = (*TEXT, *folders, "corpus.held_out.test=0")
    write_run(root, "rotary", text)
    write_run(root, "learned", (*text, "model.positions=learned"))
    files = (f"corpus.{split}.{side}={root}/{split}.{code}" for split in ("train", "validation", "test")
             for side, code in (("source", "en"), ("target", "de")))  # fmt: skip
    write_run(root, "pairs", (*PAIRS, *files, "corpus.source_language=en", "corpus.target_language=de",
                              "clean.decontaminate=false"))  # fmt: skip
    return root


def run(root: Path, *words: str) -> Path:
    assert attend.main([*words, f"output_dir={root}"]) == 0
    return root / "runs" / words[0] / FIGURES_FOLDER / "inside"


def test_scores_of_heads_of_a_language_model_and_of_a_translator(root: Path, capsys: pytest.CaptureFixture) -> None:
    folder = run(root, "copy", "part=heads", "examples=5")
    record = json.loads((folder / "heads.json").read_text())
    (stack,) = record["stacks"].values()
    assert record["examples"] == 5 and {"previous", "first", "same", "punctuation", "induction"} <= stack.keys()
    # The blank - and the separator : are punctuation: nearly all that an untrained model sees.
    assert stack["punctuation"]["uniform"] > 0.5
    assert len(stack["previous"]["heads"]) == 2 and len(stack["previous"]["heads"][0]) == 4
    assert imread(folder / "heads.png").shape[1] > 600
    folder = run(root, "pairs", "part=heads")
    stacks = json.loads((folder / "heads.json").read_text())["stacks"]
    assert set(stacks) == {"encoder", "decoder", "cross"} and "aligned" in stacks["cross"]
    printed = capsys.readouterr().out
    assert "strongest head" in printed and "part=heads examples=5" in printed and "log=true" in printed


def test_heads_taken_out(root: Path, capsys: pytest.CaptureFixture) -> None:
    folder = run(root, "copy", "part=prune", "examples=5", "points=3")
    record = json.loads((folder / "prune_all.json").read_text())
    assert [point["left"] for point in record["points"]] == list(range(8, -1, -1))
    assert {"symbols", "loss"} <= record["points"][0]["scores"].keys() and record["points"][1]["scores"] == {}
    assert record["points"][0]["head"] is None and record["points"][1]["head"].startswith("decoder ")
    assert (folder / "prune_all.png").exists()
    run(root, "copy", "part=prune", "examples=5", "without=1.1,2.4")
    models = json.loads((folder / "without.json").read_text())["models"]
    assert [model["model"] for model in models] == ["all heads", "without decoder 1.1, decoder 2.4"]
    assert models[0]["loss"] != models[1]["loss"]
    folder = run(root, "pairs", "part=prune", "stack=encoder", "points=2")
    points = json.loads((folder / "prune_encoder.json").read_text())["points"]
    assert [point["left"] for point in points] == [2, 1, 0] and "bleu" in points[0]["scores"]
    assert "loss of 24" in capsys.readouterr().out


def test_gradients_of_two_models_side_by_side(root: Path) -> None:
    folder = run(root, "copy", "lstm", "part=gradient", "examples=3")
    record = json.loads((folder / "gradient.json").read_text())
    assert set(record) == {"copy, untrained", "copy, trained", "lstm, untrained", "lstm, trained"}
    assert all(len(model["norms"]) == 49 for model in record.values())
    assert record["lstm, untrained"]["rate"] > 0.04 > abs(record["copy, untrained"]["rate"])
    assert (folder / "gradient.png").exists()


def test_longer_texts(root: Path, capsys: pytest.CaptureFixture) -> None:
    folder = run(root, "rotary", "learned", "part=positions")
    record = json.loads((folder / "positions.json").read_text())
    assert [result["length"] for result in record["rotary, rotary"]] == [16, 32, 64]
    assert [result["loss"] is None for result in record["learned, learned"]] == [False, True, True]
    assert "no positions" in capsys.readouterr().out and (folder / "positions.png").exists()


def test_the_attention_of_a_language_model_on_a_text(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert attend.main(["rotary", "a word, a cat", f"output_dir={root}"]) == 0
    (folder,) = (root / "runs" / "rotary" / FIGURES_FOLDER / "attention").iterdir()
    assert [path.name for path in folder.iterdir()] == ["decoder.png"]
    assert "text         a word, a cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["copy", "part=hats"], r"^part=hats"),
        (["copy", "lstm", "part=heads"], r"^part=heads"),
        (["part=heads"], r"^usage: transloom attend"),
        (["lstm", "part=heads"], r"^lstm: "),
        (["lstm", "part=prune"], "recurrent"),
        (["lstm", "abc"], "no attention"),
        (["rotary", "a", "b"], "does not translate"),
        (["rotary", ""], "the text is empty"),
        (["rotary", "a word, and a word"], "reads at most 16"),
        (["pairs", "part=gradient"], r"^pairs: "),
        (["copy", "part=positions"], r"^copy: .*prompt_response"),
        (["copy", "part=heads", "examples=0"], r"^examples"),
        (["copy", "abc", "examples=3"], r"^examples: is of part="),
        (["copy", "part=prune", "stack=cross"], r"^stack=cross"),
        (["copy", "part=prune", "stack=decoder", "without=1.1"], r"^stack: "),
        (["rotary", "part=heads", "split=test"], "has no split .test., only train, validation"),
        (["copy", "part=prune", "without=9.9"], r"^without=9\.9"),
    ],
)
def test_what_is_refused(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attend.main([*words, f"output_dir={root}"])
