"""`transloom compare` of models that respond to prompts: tests over examples, refusals. Runs are written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from transloom.jobs.commands.compare import main
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.pipeline.data.document_store import write_documents
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, sha256_file, write_json
from transloom.pipeline.tracking.spool import MetricLog

COUNT = 60
RIGHT = [f"x = {i}" for i in range(COUNT)]


def make_corpus(root: Path, name: str = "code", answers: Sequence[str] = RIGHT) -> Path:
    folder = root / "corpora" / name
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        texts = [text for i, answer in enumerate(answers) for text in (f"set x to {i}\n", answer)]
        write_documents(folder, split, texts)
    lines = [json.dumps([answer]) + "\n" for answer in answers]
    (folder / "validation.answers.jsonl").write_text("".join(lines))
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()}
    counts = {
        "splits": {split: {"examples": COUNT} for split in ("train", "validation")},
        "baselines": {"validation": {"response of the nearest training prompt": 20.0}},
    }
    write_json(folder / "manifest.json", {"key": name, "files": files, "counts": counts})
    return folder


def make_run(root: Path, name: str, corpus: Path, wrong: Sequence[int], *words: str) -> Path:
    """A run, trained for 20 steps.

    Args:
        wrong: places of the validation's examples with another response than the answer.
    """
    tokenizer = root / "tokenizers" / name
    tokenizer.mkdir(parents=True)
    write_json(tokenizer / "manifest.json", {"counts": {"vocab_size": 100}})
    folder = root / "runs" / name
    (folder / "model").mkdir(parents=True)
    config = load_config(["experiment=transfer/django_en_python", f"output_dir={root}", f"name={name}", *words])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "prepared.json", {"corpus": str(corpus), "tokenizer": str(tokenizer)})
    write_json(folder / "model" / "config.json", {"sha256": {"model.safetensors": name}, "steps": [20]})
    validations = [{"step": step, "loss": 1.0, "exact_match": 50.0 + step} for step in (10, 20)]
    training = {"step": 20, "seconds": 20.0, "response_tokens": 90, "text_tokens": 2000, "world_size": 1}
    write_json(folder / "training.json", training | {"validations": validations})
    spool = MetricLog(folder / "metrics.jsonl")
    for step in range(1, 21):
        counts = {"train/text_tokens": 100.0 * step, "train/response_tokens": 4.5 * step}
        spool.append({**counts, "train/seconds": float(step), "train/loss": 0.7}, step)
    for one in validations:
        points = {f"validation/{key}": one[key] for key in ("loss", "exact_match")}
        spool.append({**points, "validation/seconds": float(one["step"])}, one["step"])
    spool.close()
    evaluation = evaluation_folder(Run(name, folder, config))
    assert evaluation is not None
    evaluation.mkdir(parents=True)
    scores = [0.0 if i in wrong else 100.0 for i in range(COUNT)]
    records = [
        json.dumps({"response": RIGHT[i] if scores[i] else "return", "score": scores[i]}) + "\n" for i in range(COUNT)
    ]
    (evaluation / "validation.hypotheses").write_text("".join(records))
    result = {
        "validation": {
            "exact_match": {"value": sum(scores) / COUNT, "signature": "spaces:one|greedy"},
            "parses": {"value": 100.0, "signature": ""},
            "loss": {"value": 1.0, "signature": ""},
        },
        "baselines": read_json(corpus / "manifest.json")["counts"]["baselines"],
        "sentences": {"validation": COUNT},
        "seconds": {"validation": 1.0},
        "steps_averaged": [20],
        "selects": "exact_match",
        "search": "",
        "label": "",
        "is_own_search": True,
        "step": 20,
        "training_ended": True,
    }
    write_json(evaluation / "result.json", result)
    return folder


def test_runs_are_compared_by_a_paired_bootstrap_over_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path)
    make_run(tmp_path, "scratch", corpus, range(30))
    make_run(tmp_path, "tuned", corpus, range(6))
    assert main(["scratch", "tuned", f"output_dir={tmp_path}", "tracking=off"]) == 0
    (file,) = (tmp_path / "comparisons").glob("*/comparison.json")
    comparison = read_json(file)
    assert comparison["task"] == "prompt_response" and comparison["examples"] == COUNT
    scores = comparison["systems"]["tuned"]["scores"]
    assert scores["exact_match"]["score"] == pytest.approx(90.0)
    assert scores["exact_match"]["difference"] == pytest.approx(40.0) and scores["exact_match"]["p_bootstrap"] < 0.001
    assert scores["parses"] == {"score": 100.0}
    assert comparison["systems"]["tuned"]["examples"] == {"better": 24, "worse": 0, "equal": 36}
    said = " ".join(capsys.readouterr().out.split())
    assert "tuned has 90.00 exact match, +40.00 to scratch" in said and "better" in said
    assert "nearest training prompt has 20.00 exact match on the same examples: beaten by all of them" in said
    report = (file.parent / "report.html").read_text()
    assert "set x to 7" in report


def test_runs_of_other_examples_or_scores_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "one", make_corpus(tmp_path), range(3))
    other = make_corpus(tmp_path, "other", [f"y = {i}" for i in range(COUNT)])
    make_run(tmp_path, "two", other, range(3))
    words = [f"output_dir={tmp_path}", "tracking=off"]
    with pytest.raises(UserError, match="other examples"):
        main(["one", "two", *words])
    make_run(tmp_path, "three", tmp_path / "corpora" / "code", range(3), "corpus.metric=squad")
    with pytest.raises(UserError, match=r"^corpus\.metric:"):
        main(["one", "three", *words])


def test_a_file_that_does_not_have_the_result_s_score_is_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    make_run(tmp_path, "one", corpus, range(3))
    folder = make_run(tmp_path, "two", corpus, range(3))
    (file,) = folder.glob("evaluation/*/validation.hypotheses")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="is not of the 60 examples"):
        main(["one", "two", f"output_dir={tmp_path}", "tracking=off"])
    file.write_text("".join([*lines[:-1], '{"response": "x", "score": 0.0}\n']))
    with pytest.raises(UserError, match="the evaluation says"):
        main(["one", "two", f"output_dir={tmp_path}", "tracking=off"])


def test_runs_that_differ_in_the_seed_are_taken_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path)
    for seed in (1, 2):
        make_run(tmp_path, f"scratch-{seed}", corpus, range(30 + 6 * seed), f"seed={seed}")
        make_run(tmp_path, f"tuned-{seed}", corpus, range(12), f"seed={seed}", "model.dropout=0.3")
    main(["scratch-1", "scratch-2", "tuned-1", "tuned-2", f"output_dir={tmp_path}", "tracking=off"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Over 2 seeds, scratch-1 and the like have 35.00 ± 7.07 exact match." in said
    assert "tuned-1 and the like have 80.00 ± 0.00 exact match, and scratch-1 and the like 35.00 ± 7.07: +45.00" in said
    (file,) = (tmp_path / "comparisons").glob("*/comparison.json")
    assert [group["names"] for group in read_json(file)["seeds"]] == [
        ["scratch-1", "scratch-2"],
        ["tuned-1", "tuned-2"],
    ]
