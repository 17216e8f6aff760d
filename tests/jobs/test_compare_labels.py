"""`transloom compare` of classifiers: McNemar's test, groups of seeds, what is refused. Runs are written by hand."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from comparable import make_documents, make_language_run, write_lines

from transloom.jobs.commands.compare import main
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.pipeline.data.document_store import write_documents
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, sha256_file, write_json
from transloom.pipeline.tracking.spool import MetricLog

TEXTS = [f"text {i}" for i in range(60)]
LABELS = [i % 2 for i in range(60)]


def make_texts(root: Path, name: str = "labelled", labels: Sequence[int] = LABELS) -> Path:
    folder = root / "corpora" / name
    folder.mkdir(parents=True)
    for split, texts in {"train": TEXTS, "validation": TEXTS[:10], "test": TEXTS}.items():
        write_documents(folder, split, texts)
        np.save(folder / f"{split}.labels.npy", np.array(labels[: len(texts)], np.int32))
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()}
    splits = {split: {"texts": count} for split, count in (("train", 60), ("validation", 10), ("test", 60))}
    baselines = {split: {"majority class": 50.0} for split in ("validation", "test")}
    counts = {"splits": splits, "labels": ["bad", "good"], "baselines": baselines}
    write_json(folder / "manifest.json", {"key": name, "files": files, "counts": counts})
    return folder


def make_run(root: Path, name: str, corpus: Path, wrong: Sequence[int], *words: str) -> Path:
    """A classifier's run, trained for 20 steps.

    Args:
        wrong: places of the test's texts with another label than their own.
    """
    tokenizer = root / "tokenizers" / name
    tokenizer.mkdir(parents=True)
    write_json(tokenizer / "manifest.json", {"counts": {"vocab_size": 100}})
    folder = root / "runs" / name
    (folder / "model").mkdir(parents=True)
    files = ["experiment=transfer/classification", "corpus.train.files=train.tsv"]
    config = load_config([*files, f"output_dir={root}", f"name={name}", *words])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "prepared.json", {"corpus": str(corpus), "tokenizer": str(tokenizer)})
    write_json(folder / "model" / "config.json", {"sha256": {"model.safetensors": name}, "steps": [20]})
    validations = [{"step": step, "loss": 1.0, "accuracy": 50.0 + step} for step in (10, 20)]
    training = {"step": 20, "seconds": 20.0, "label_tokens": 90, "text_tokens": 2000, "world_size": 1}
    write_json(folder / "training.json", training | {"validations": validations})
    spool = MetricLog(folder / "metrics.jsonl")
    for step in range(1, 21):
        spool.append({"train/text_tokens": 100.0 * step, "train/seconds": float(step), "train/loss": 0.7}, step)
    spool.close()
    evaluation = evaluation_folder(Run(name, folder, config))
    assert evaluation is not None
    said = [("bad", "good")[label != (place in wrong)] for place, label in enumerate(LABELS)]
    write_lines(evaluation / "test.hypotheses", [json.dumps({"label": one, "probability": 0.9}) for one in said])
    accuracy = 100 * (60 - len(wrong)) / 60
    scores = {key: {"value": accuracy, "signature": ""} for key in ("accuracy", "macro_f1")}
    result: dict = {"test": scores, "seconds": {"test": 2.0}, "sentences": {"test": 60}, "steps_averaged": [20]}
    result |= {"baselines": {"test": {"majority class": 50.0}}, "search": "", "label": "", "is_own_search": True}
    write_json(evaluation / "result.json", result | {"step": 20, "training_ended": True})
    return folder


def test_classifiers_are_compared_on_the_same_texts_and_over_seeds(tmp_path: Path, capsys) -> None:
    corpus = make_texts(tmp_path)
    for seed, slips in (("1", 20), ("2", 18)):
        make_run(tmp_path, f"plain-{seed}", corpus, range(slips), f"seed={seed}")
        make_run(tmp_path, f"tuned-{seed}", corpus, range(50, 50 + slips // 4), f"seed={seed}", "model.dropout=0.2")
    main(["plain-1", "plain-2", "tuned-1", "tuned-2", f"output_dir={tmp_path}", "tracking=off"])
    said = capsys.readouterr().out
    (file,) = (tmp_path / "comparisons").glob("*/comparison.json")
    comparison = read_json(file)
    scores = comparison["systems"]["tuned-1"]["scores"]["accuracy"]
    assert scores["difference"] == pytest.approx(25.0)
    assert (scores["only_this"], scores["only_baseline"]) == (20, 5)
    assert re.search(r"^tuned-1 +91\.67 .*\+25\.00 .* 20 / 5 ", said, re.MULTILINE), said
    assert re.search(r"^plain-1, plain-2 +2 +68\.33 +2\.36 +baseline", said, re.MULTILINE), said
    assert re.search(r"^tuned-1, tuned-2 +2 +92\.50 +1\.18 +\+24\.17 ", said, re.MULTILINE), said
    assert "Over 2 seeds, tuned-1 and the like have 92.50 ± 1.18 accuracy in percent" in said
    assert "A majority class has 50.00 accuracy in percent on the same texts: beaten by all of them." in said
    assert "transloom classify tuned-2" in said
    assert "Texts that differ" in (file.parent / "report.html").read_text()


def refused(root: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        main([*words, f"output_dir={root}", "tracking=off"])
    return str(caught.value)


def test_other_labels_a_damaged_file_and_another_task_are_refused(tmp_path: Path) -> None:
    corpus = make_texts(tmp_path)
    make_run(tmp_path, "one", corpus, [1])
    make_run(tmp_path, "two", make_texts(tmp_path, "turned", [1 - label for label in LABELS]), [])
    assert "the run two was evaluated on other texts or labels than the run one" in refused(tmp_path, "one", "two")
    folder = make_run(tmp_path, "three", corpus, [2])
    (file,) = folder.glob("evaluation/*/test.hypotheses")
    file.write_text('{"label": "good"}\n' * 60)
    assert refused(tmp_path, "one", "three").startswith(f"{file}: has an accuracy of 50.00 %")
    file.write_text("no JSON\n")
    assert refused(tmp_path, "one", "three").startswith(f"{file}: is damaged")
    make_language_run(tmp_path, "texts", make_documents(tmp_path), [2.0])
    assert refused(tmp_path, "one", "texts").startswith("task: ")
    assert refused(tmp_path, "one", "two", "references=a").startswith("references: ")
