"""Problems drawn at random: what they ask, that they are the same for everybody, and that a run's stages read them."""

import json
from pathlib import Path

import numpy as np
import pytest

from transloom.jobs.config.compose import load_config
from transloom.pipeline.data.prompts import PromptsConfig, PromptsKind, read_examples
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.data.synthetic import BLANK, SYMBOLS, Problem, SyntheticConfig, draw_records
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, read_json
from transloom.pipeline.tasks.build import make_task, prepare_data


def records(problem: Problem, split: str = "train", **settings: int) -> list[tuple[str, str]]:
    config = SyntheticConfig(problem, **{"length": 40, "examples": 50, "held_out": 20, **settings})
    drawn = draw_records(config, split, "response")
    return [(record.texts["prompt"], record.lists["response"][0]) for record in drawn]


def test_copy_memory_asks_for_the_ten_symbols_before_the_blanks() -> None:
    for prompt, response in records(Problem.copy_memory):
        assert prompt == response + BLANK * 39 and len(response) == 10 and set(response) <= set("abcdefgh")


def test_adding_asks_for_the_sum_of_a_marked_digit_of_each_half() -> None:
    for prompt, response in records(Problem.adding):
        marked = [(i, "abcdefghij".index(c)) for i, c in enumerate(prompt) if c.isalpha()]
        assert len(prompt) == 40 and [i < 20 for i, _ in marked] == [True, False]
        assert "ABCDEFGHIJKLMNOPQRS".index(response) == sum(digit for _, digit in marked)


def test_induction_repeats_symbols_that_are_all_different_and_of_any_number() -> None:
    pairs = records(Problem.induction)
    assert all(prompt == response and len(set(prompt)) == len(prompt) for prompt, response in pairs)
    assert {len(prompt) for prompt, _ in pairs} <= set(range(20, 41)) and len({len(prompt) for prompt, _ in pairs}) > 10


def test_needle_has_its_digits_at_any_place_among_letters() -> None:
    pairs = records(Problem.needle, examples=200)
    places = {prompt.index(response) for prompt, response in pairs}
    for prompt, response in pairs:
        assert len(prompt) == 40 and len(response) == 5 and response.isdigit()
        assert prompt.replace(response, "", 1).isalpha()
    assert min(places) == 0 and max(places) == 35


def test_recall_asks_for_the_values_of_all_keys_in_their_fixed_order() -> None:
    pairs = records(Problem.recall)
    for prompt, response in pairs:
        told = dict(zip(prompt[::2], prompt[1::2], strict=True))
        assert len(told) == 40 and response == "".join(key + told[key] for key in SYMBOLS[:40])
    assert len({prompt[::2] for prompt, _ in pairs}) == len(pairs)  # the keys' order varies


@pytest.mark.parametrize("problem", Problem)
def test_an_example_depends_on_seed_split_and_number_alone(problem: Problem) -> None:
    assert records(problem) == records(problem, examples=80)[:50]
    assert not set(records(problem)) & set(records(problem, "validation", held_out=50))
    assert not set(records(problem)) & set(records(problem, seed=2))
    assert len(records(problem, "validation")) == len(records(problem, "test")) == 20


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"length": 1}, "length"),
        ({"held_out": 0}, "held_out"),
        ({"problem": Problem.induction, "length": 63}, "length"),
        ({"problem": Problem.recall, "length": 63}, "length"),
        ({"problem": Problem.needle, "length": 4}, "length"),
    ],
)
def test_what_can_not_be_drawn_is_refused_by_its_key(settings: dict, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}:"):
        SyntheticConfig(**settings)


def test_files_and_other_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^kind:"):
        PromptsConfig(PromptsKind.synthetic, train=type(PromptsConfig().train)("some.jsonl"))
    with pytest.raises(UserError, match=r"^corpus\.template:"):
        next(read_examples(PromptsConfig(PromptsKind.synthetic, template="{text}"), "train"))


@pytest.mark.parametrize("model", ["lm_probe", "lm_lstm"])
def test_a_run_of_either_model_reads_the_papers_number_of_positions(model: str, tmp_path: Path) -> None:
    """Of a model that knows nothing, the loss per position is that of the paper's baseline, by T + 20."""
    words = ["experiment=probe/copy_memory", f"model={model}", f"output_dir={tmp_path}"]
    words += ["corpus.synthetic.length=30", "corpus.synthetic.examples=40", "corpus.synthetic.held_out=12"]
    config = load_config([*words, "model.max_positions=51", "batch.micro_tokens=200", "batch.tokens=400"])
    prepared = prepare_data(config, tmp_path)
    folders = {"corpus": prepared.corpus.folder, "shards": prepared.shards.folder}
    folders["tokenizer"] = prepared.tokenizer.folder
    splits = {
        split: len(open_shards(folders["shards"], split, ("prompt",))) for split in ("train", "validation", "test")
    }
    assert splits == {"train": 40, "validation": 12, "test": 12}
    (baseline,) = read_json(folders["corpus"] / MANIFEST)["counts"]["baselines"]["test"].values()
    assert 0 < baseline < 30  # one symbol of eight
    task = make_task(config, folders.__getitem__)
    result = task.validate(task.model().eval())
    examples = task.epoch(task.examples("train"), 1, 0)
    assert examples.lengths.tolist() == [[11, 50]] * 40  # 10 symbols with their end; T + 20 positions
    assert result.loss is not None
    assert result.scores["loss_per_position"].value == pytest.approx(result.loss * 11 / 50)
    assert set(result.scores) == {"symbols", "loss", "loss_per_position"}
    assert json.loads(result.outputs[0]).keys() == {"response", "score"} and len(result.outputs) == 12
    assert np.isfinite(result.values()["symbols"])
