"""Finished runs of a few sentences or documents, written by hand: what `transloom compare` reads of a run, without a
training."""

import json
from collections.abc import Sequence
from pathlib import Path

from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training.evaluate import evaluation_folder
from transloom.pipeline.data.document_store import open_documents, write_documents
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.files import sha256_file, write_json
from transloom.pipeline.tracking.spool import MetricLog

SOURCES = ["a dog runs", "the cat <b>sleeps</b> & dreams", "two men sit on a bench", "nobody is here", "it rains"] * 6
REFERENCES = ["ein Hund rennt", "die Katze <b>schläft</b> & träumt", "zwei Männer sitzen auf einer Bank"] * 10
GOOD = ["ein Hund rennt", "die Katze <b>schläft</b> & träumt", "zwei Männer sitzen auf der Bank"] * 10
BAD = ["ein Hund läuft", "<script>alert(1)</script> schläft", "zwei Leute sitzen"] * 10


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def make_corpus(root: Path, name: str = "corpus-1", references: list[str] = REFERENCES) -> Path:
    folder = root / "corpora" / name
    texts = {
        "test.source": (SOURCES * len(references))[: len(references)],
        "test.target": references,
        "validation.target": references[:6],
    }
    texts |= {"train.target": ["ein Hund schläft auf der Bank"] * 30}
    files = {file: {"sha256": sha256_file(write_lines(folder / file, lines))} for file, lines in texts.items()}
    splits = {"train": {"pairs": 30}, "test": {"pairs": len(references)}, "validation": {"pairs": 6}}
    write_json(folder / "manifest.json", {"key": name, "files": files, "counts": {"splits": splits}})
    return folder


def make_run(
    root: Path, name: str, translations: list[str], *words: str, corpus: Path | None = None, bleu: float = 30.0
) -> Path:
    """A run in `root` that was trained for 20 steps, a second and 100 tokens each, and evaluated."""
    corpus = corpus or make_corpus(root)
    tokenizer = root / "tokenizers" / "pieces"
    tokenizer.mkdir(parents=True, exist_ok=True)
    write_json(tokenizer / "manifest.json", {"counts": {"vocab_size": 100}})
    folder = root / "runs" / name
    (folder / "model").mkdir(parents=True)
    config = load_config([f"output_dir={root}", f"name={name}", *words])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "prepared.json", {"corpus": str(corpus), "tokenizer": str(tokenizer)})
    write_json(folder / "model" / "config.json", {"sha256": {"model.safetensors": name}, "steps": [15, 20]})
    tags = {"environment.machine": "x86_64, a test", "corpus.hash": corpus.name * 3, "environment.torch": "2.13"}
    write_json(folder / "run.json", {"run_id": f"id-of-{name}", "tags": tags})
    validations = [{"step": step, "loss": 5 - step / 10, "bleu": bleu * step / 20} for step in (5, 10, 15, 20)]
    training = {"step": 20, "seconds": 20.0, "source_tokens": 2000, "target_tokens": 2000, "world_size": 2}
    write_json(folder / "training.json", training | {"validations": validations})
    spool = MetricLog(folder / "metrics.jsonl")
    for step in range(1, 21):
        tokens = {f"train/{side}_tokens": 100.0 * step for side in ("source", "target")}
        spool.append(tokens | {"train/seconds": float(step), "train/loss": 6 - step / 8}, step)
    spool.close()
    evaluation = evaluation_folder(Run(name, folder, config))
    assert evaluation is not None
    write_lines(evaluation / "test.hypotheses", translations)
    references = (corpus / "test.target").read_bytes().decode().removesuffix("\n").split("\n")
    tokenize = config.bleu_tokenizer
    found = score(translations, references, tokenize=tokenize) if len(translations) == len(references) else {}
    scores = {metric: {"value": one.value, "signature": one.signature} for metric, one in found.items()}
    result = {"test": scores, "seconds": {"test": 2.0}, "sentences": {"test": len(translations)}}
    result |= {"steps_averaged": [15, 20]}
    write_json(evaluation / "result.json", result)
    return folder


DOCUMENTS = [f"def f{i}():\n    return {'x' * (7 * i % 50)}\n" for i in range(40)]


def make_documents(root: Path, name: str = "texts", test: Sequence[str] = DOCUMENTS) -> Path:
    """A prepared corpus of documents; without a test set where `test` is empty."""
    folder = root / "corpora" / name
    folder.mkdir(parents=True)
    texts = {"train": DOCUMENTS * 2, "validation": DOCUMENTS[:10], **({"test": test} if test else {})}
    splits = {split: write_documents(folder, split, documents) for split, documents in texts.items()}
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()}
    counts = {"splits": splits, "baselines": {split: {"5-gram of bytes": 2.5} for split in texts if split != "train"}}
    write_json(folder / "manifest.json", {"key": name, "files": files, "counts": counts})
    return folder


def make_language_run(root: Path, name: str, corpus: Path, ratios: Sequence[float], *words: str) -> Path:
    """A run of a language model in `root`, trained for 20 steps, a second and 100 tokens each, and evaluated.

    Args:
        ratios: bits per byte of the documents, in turn.
    """
    tokenizer = root / "tokenizers" / name
    tokenizer.mkdir(parents=True)
    write_json(tokenizer / "manifest.json", {"counts": {"vocab_size": 100}})
    folder = root / "runs" / name
    (folder / "model").mkdir(parents=True)
    config = load_config(["experiment=language_model/demo", f"output_dir={root}", f"name={name}", *words])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "prepared.json", {"corpus": str(corpus), "tokenizer": str(tokenizer)})
    write_json(folder / "model" / "config.json", {"sha256": {"model.safetensors": name}, "steps": [20]})
    tags = {"environment.machine": "x86_64, a test", "corpus.hash": corpus.name * 3, "tokenizer.hash": name}
    write_json(folder / "run.json", {"run_id": f"id-of-{name}", "tags": tags})
    validations = [{"step": step, "loss": 5 - step / 10, "bits_per_byte": 8 - step / 4} for step in (10, 20)]
    training = {"step": 20, "seconds": 20.0, "text_tokens": 2000, "world_size": 1, "validations": validations}
    write_json(folder / "training.json", training)
    spool = MetricLog(folder / "metrics.jsonl")
    for step in range(1, 21):
        spool.append(
            {"train/text_tokens": 100.0 * step, "train/seconds": float(step), "train/loss": 6 - step / 8}, step
        )
    spool.close()
    evaluation = evaluation_folder(Run(name, folder, config))
    assert evaluation is not None
    result: dict = {"seconds": {}, "sentences": {}, "baselines": {}, "steps_averaged": [20], "search": ""}
    result |= {"label": "", "is_own_search": True, "step": 20, "training_ended": True}
    for split in ("validation", "test"):
        if not (corpus / f"{split}.text").exists():
            continue
        sizes = open_documents(corpus, split).num_bytes
        bits = [ratios[i % len(ratios)] * int(size) for i, size in enumerate(sizes)]
        lines = [json.dumps({"bits": own, "bytes": int(size)}) for own, size in zip(bits, sizes, strict=True)]
        write_lines(evaluation / f"{split}.hypotheses", lines)
        signature = "context:256|stride:256|ends:yes"
        result[split] = {"bits_per_byte": {"value": sum(bits) / int(sizes.sum()), "signature": signature}}
        result["seconds"][split], result["sentences"][split] = 2.0, len(sizes)
        result["baselines"][split] = {"5-gram of bytes": 2.5}
    write_json(evaluation / "result.json", result)
    return folder
