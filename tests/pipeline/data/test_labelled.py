"""Texts with labels: the splits that files make, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from transloom.pipeline.data.label_baselines import MAJORITY, TFIDF, label_baselines
from transloom.pipeline.data.labelled import LabelledConfig, LabelledTexts, collate_labelled, read_labelled, text_input
from transloom.pipeline.data.prepare_labelled import prepare_labelled
from transloom.pipeline.data.records import RecordSource
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, load_text_tokenizer
from transloom.pipeline.errors import UserError

ROWS = [f"a{'very ' * (i % 4)} {'good' if i % 2 else 'bad'} film {i}\t{'yes' if i % 2 else 'no'}" for i in range(60)]


def write(folder: Path, **files: list[str]) -> LabelledConfig:
    """A corpus of tables without headers, by split."""
    for split, rows in files.items():
        (folder / f"{split}.tsv").write_text("".join(f"{row}\n" for row in rows))
    sources = {split: RecordSource(f"{split}.tsv") for split in files}
    return LabelledConfig(path=str(folder), columns=["text", "label"], **sources)


def test_labels_are_those_of_train_sorted_and_validation_is_held_out_by_the_seed(tmp_path: Path) -> None:
    config = write(tmp_path, train=[*ROWS, *ROWS[:10]], test=["one\tyes"])
    data = read_labelled(config)
    assert data.labels == ["no", "yes"] and list(data.texts) == ["train", "validation", "test"]
    held = {one.text for one in data.texts["validation"]}
    assert 1 <= len(held) < 20 and not held & {one.text for one in data.texts["train"]}, "equal texts stay together"
    assert len(data.texts["train"]) + data.held_out == 70
    again = read_labelled(config)
    assert again == data
    other = read_labelled(LabelledConfig(**{**vars(config), "held_out_seed": 1}))
    assert {one.text for one in other.texts["validation"]} != held


def test_texts_of_test_and_empty_texts_are_left_out_of_train(tmp_path: Path) -> None:
    data = read_labelled(write(tmp_path, train=[*ROWS, " \tyes"], validation=["other\tno"], test=[ROWS[3], ROWS[4]]))
    assert len(data.texts["train"]) == 58 and data.held_out == 0
    assert data.dropped == {"empty": 1, "in_test": 2}
    assert "train.tsv line 4" in data.examples["in_test"]


def test_empty_texts_are_counted_and_a_label_that_is_held_out_whole_is_named(tmp_path: Path) -> None:
    rows = [*ROWS, " \tyes", "\tno"]
    for seed in range(8):  # in some of them the empty texts would be held out
        data = read_labelled(LabelledConfig(**{**vars(write(tmp_path, train=rows)), "held_out_seed": seed}))
        assert data.dropped["empty"] == 2 and len(data.texts["train"]) + data.held_out == 60
    held = data.texts["validation"][0]
    rows = [row if row.split("\t")[0] != held.text else f"{held.text}\trare" for row in ROWS]
    with pytest.raises(UserError, match=r"^corpus\.held_out: .*'rare'.*held_out_seed"):
        read_labelled(LabelledConfig(**{**vars(write(tmp_path, train=rows)), "held_out_seed": 7}))


def test_other_names_of_labels_make_other_shards(tmp_path: Path) -> None:
    shards = []
    for names in ("no yes", "0 1"):
        no, yes = names.split()
        rows = [row.replace("\tno", f"\t{no}").replace("\tyes", f"\t{yes}") for row in ROWS]
        config = write(tmp_path, train=rows)
        shards.append(prepare_labelled(config, TextTokenizerConfig(vocab_size=280), tmp_path / "out").shards.folder)
    assert shards[0] != shards[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": ["a\tx", "b\tx"], "validation": ["c\tx"]}, r"^corpus\.train\.files: all 2 texts have the label 'x'"),
        ({"train": ROWS, "validation": ["c\tyes", "d\tmaybe"]}, r"validation\.tsv line 2: the label 'maybe'"),
        ({"train": ROWS, "test": ["c\tyes", " \tno"]}, r"test\.tsv line 2: the text .* is empty"),
        ({"train": [*ROWS, "b\t "]}, r"train\.tsv line 61: the label .* is empty"),
        ({"train": [*ROWS, "b\ta\x07"]}, r"train\.tsv line 61: the label .* has a tab"),
        ({"train": ROWS[:2], "validation": ROWS[:2]}, r"^corpus\.train\.files: has no text"),
        ({"test": ROWS}, r"^corpus\.train\.files: is missing"),
    ],
    ids=["one label", "unknown label", "empty text", "empty label", "bell", "nothing left", "no train"],
)
def test_what_makes_no_classifier_is_refused(tmp_path: Path, files: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_labelled(write(tmp_path, **files))


def test_a_missing_file_and_a_missing_field_are_refused(tmp_path: Path) -> None:
    config = write(tmp_path, train=ROWS)
    with pytest.raises(UserError, match=r"^corpus\.test\.files"):
        prepare_labelled(
            LabelledConfig(**{**vars(config), "test": RecordSource("none.tsv")}), TextTokenizerConfig(), tmp_path
        )
    with pytest.raises(UserError, match="sentence"):
        read_labelled(LabelledConfig(**{**vars(config), "text_field": "sentence"}))


def test_a_share_or_a_field_that_can_t_be_is_refused() -> None:
    for field, value in {"held_out": 0.0, "label_field": "text", "name": "a b", "held_out_seed": -1}.items():
        with pytest.raises(ValueError, match=f"^{field}: "):
            LabelledConfig(**{field: value})


def test_examples_are_the_end_of_text_and_the_first_tokens_with_a_label(tmp_path: Path) -> None:
    config = write(tmp_path, train=ROWS, validation=["much too long a text to be read\tno", "bad\tyes"])
    tokenizer = TextTokenizerConfig(vocab_size=280)
    prepared = prepare_labelled(config, tokenizer, tmp_path / "out")
    counts = prepared.corpus.manifest["counts"]
    assert counts["labels"] == ["no", "yes"]
    assert counts["splits"]["validation"]["labels"] == {"no": 1, "yes": 1} and counts["splits"]["train"]["texts"] == 60
    loaded = load_text_tokenizer(prepared.tokenizer.folder)
    end = loaded.end_of_text
    texts = LabelledTexts(prepared.corpus.folder, prepared.shards.folder, "validation", end, 6)
    assert texts.num_cut == 1 and texts.lengths.tolist()[0] == [1, 6] and texts.labels.tolist() == [0, 1]
    for row, text in enumerate(["much too long a text to be read", "bad"]):
        expected = text_input(loaded.encode([text])[0], end, 6)
        assert texts.get("text", row).tolist() == expected.tolist() and expected[0] == end
    batch = collate_labelled(texts, [1, 0])
    assert batch.labels.tolist() == [1, 0] and batch.layout.lengths[:2].tolist() == [texts.lengths[1, 1], 6]
    assert batch.num_tokens == int(texts.lengths[:, 1].sum())
    # Other labels of the same texts are another corpus, and other shards.
    turned = [row.replace("\tyes", "\tNO").replace("\tno", "\tyes") for row in ROWS]
    other = prepare_labelled(write(tmp_path, train=turned, validation=["a\tyes"]), tokenizer, tmp_path / "out")
    assert other.shards.folder != prepared.shards.folder


def test_simple_models_are_the_most_frequent_label_and_a_regression_on_words() -> None:
    texts = [f"{word} film" for word in ("good", "fine", "bad", "poor", "dull") for _ in range(4)]
    labels = ["1"] * 8 + ["0"] * 12
    others = {"test": (["a good film", "a bad film", "poor", "fine"], ["1", "0", "0", "0"])}
    found = label_baselines(texts, labels, others)
    assert found == {"test": {MAJORITY: 75.0, TFIDF: 75.0}}
    assert label_baselines(["?", "!"], ["a", "b"], {"test": (["."], ["b"])}) == {"test": {MAJORITY: 0.0}}


def test_a_held_out_part_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    first = read_labelled(write(tmp_path, train=ROWS))
    second = read_labelled(write(tmp_path, train=[ROWS[i] for i in np.random.default_rng(0).permutation(60)]))
    texts = [{one.text for one in data.texts["validation"]} for data in (first, second)]
    assert texts[0] == texts[1]
