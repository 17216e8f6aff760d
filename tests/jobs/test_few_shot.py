"""`transloom few_shot`: a fine-tuned run beside the model that it began with. The run is written by hand, its weights
are random."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from transloom.jobs.commands.few_shot import main
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.workspace import Run, stage_folder
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.pipeline.data.prepare_prompts import prepare_prompts
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.tasks.build import make_task
from transloom.pipeline.tasks.prompt_response import baseline_scores
from transloom.pipeline.train.checkpoint import save_weights

COUNT = {"train": 30, "validation": 12}
SIZE = ("model.layers=1", "model.d_model=16", "model.d_ff=32", "model.num_heads=2", "tokenizer.vocab_size=280")


def make_run(root: Path, *words: str, begins_with_a_model: bool = True) -> Path:
    """A run on records of its own that was right about the first 9 of 12 validation examples."""
    for split, count in COUNT.items():
        lines = [json.dumps({"text": f"{split} {i}", "code": f"x = {i}"}) + "\n" for i in range(count)]
        (root / f"{split}.jsonl").write_text("".join(lines))
    records = ["corpus=records", f"corpus.path={root}", "corpus.template={text}\\n", "corpus.response=code"]
    records += [f"corpus.{split}.files={split}.jsonl" for split in COUNT] + ["corpus.metric=exact_match"]
    config = load_config(["experiment=transfer/django_en_python", f"output_dir={root}", *records, *SIZE, *words])
    prepared = prepare_prompts(config.corpus, config.tokenizer, root, baseline_scores)  # pyright: ignore
    folder = root / "runs" / "tuned"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    stages = {name: str(getattr(prepared, name).folder) for name in ("corpus", "tokenizer", "shards")}
    write_json(folder / "prepared.json", {"identity": "tuned", **stages})
    write_json(folder / "model" / "config.json", {"sha256": {"model.safetensors": "tuned"}, "steps": [20]})
    write_json(folder / "training.json", {"step": 20, "seconds": 20.0, "world_size": 1, "validations": []})
    if begins_with_a_model:
        torch.manual_seed(0)
        model = make_task(config, partial(stage_folder, folder)).model()
        save_weights(folder / "initial", 0, model.state_dict(), keep_last=1)
    evaluation = evaluation_folder(Run("tuned", folder, config))
    assert evaluation is not None
    evaluation.mkdir(parents=True)
    scores = [100.0] * 9 + [0.0] * 3
    lines = [json.dumps({"response": f"x = {i}" if score else "x", "score": score}) for i, score in enumerate(scores)]
    (evaluation / "validation.hypotheses").write_text("".join(f"{line}\n" for line in lines))
    result = {
        "validation": {"exact_match": {"value": 75.0, "signature": ""}, "loss": {"value": 1.0, "signature": ""}},
        "baselines": prepared.corpus.manifest["counts"]["baselines"],
        "steps_averaged": [20],
        "search": "",
        "label": "",
        "is_own_search": True,
        "step": 20,
    }
    write_json(evaluation / "result.json", result)
    return folder


def test_the_table_has_simple_models_the_pre_trained_one_and_the_fine_tuned_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path)
    assert main(["tuned", "shots=0,2", f"output_dir={tmp_path}", "tracking=off"]) == 0
    result = read_json(folder / "tables" / "few_shot_validation.json")
    assert list(result["systems"]) == [
        "fine-tuned",
        "pre-trained, 0 examples in the prompt",
        "pre-trained, 2 examples in the prompt",
    ]
    assert result["systems"]["fine-tuned"]["score"] == 75.0 and result["prompts"] == 12
    untrained = result["systems"]["pre-trained, 2 examples in the prompt"]
    assert untrained["score"] == 0.0 and untrained["difference"] == -75.0 and untrained["p_holm"] < 0.05
    assert result["examples_in_prompt"]["pre-trained, 2 examples in the prompt"] == 2.0
    assert list(result["simple_models"]) == ["response of the nearest training prompt"]
    said = " ".join(capsys.readouterr().out.split())
    assert "fine-tuned 75.00" in said and "nearest training prompt" in said


def test_examples_without_room_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, "model.max_positions=64", "corpus.max_response_tokens=8")
    main(["tuned", "shots=9", f"output_dir={tmp_path}", "tracking=off"])
    given = read_json(folder / "tables" / "few_shot_validation.json")["examples_in_prompt"]
    assert 1 <= given["pre-trained, 9 examples in the prompt"] < 9
    assert "Of 9 examples the context has room for" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["shots=-1"], ["shots=a"], ["shots="], ["seed=x"], ["shots=31"]])
def test_wrong_numbers_are_refused_by_their_key(tmp_path: Path, words: list[str]) -> None:
    make_run(tmp_path)
    with pytest.raises(UserError, match=f"^{words[0].split('=')[0]}:"):
        main(["tuned", *words, f"output_dir={tmp_path}", "tracking=off"])


def test_a_run_from_random_weights_is_refused_with_what_to_do(tmp_path: Path) -> None:
    make_run(tmp_path, begins_with_a_model=False)
    with pytest.raises(UserError, match=r"train\.initial"):
        main(["tuned", f"output_dir={tmp_path}", "tracking=off"])
