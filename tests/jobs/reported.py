"""Runs as jobs report them, without a Ray and a training: the numbers are made up, the reporting is the real one."""

import dataclasses
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from transloom.jobs.config.compose import load_config
from transloom.jobs.runs.report import open_tracker, report_evaluation, report_training, report_validation
from transloom.jobs.runs.workspace import only_owner, run_for
from transloom.pipeline.data.lines import read_lines
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.files import write_json
from transloom.pipeline.run_folder import TRAINING_FILE
from transloom.pipeline.tasks.samples import sample_places
from transloom.pipeline.tasks.task import Evaluation, Score
from transloom.pipeline.tracking.tracker import SpoolTracker

STEPS, VALIDATE_EVERY = 400, 100
SECONDS_PER_STEP, TOKENS_PER_STEP = 0.1, 1000


def report_run(output_dir: Path, name: str, quality: float, *words: str) -> str:
    """Reports a finished run of the phrasebook to the store in `output_dir`; MLflow's id of it.

    Args:
        quality: what share of the translations is right, by which the scores are counted.
        words: settings that set the run apart.
    """
    small = ["corpus.phrasebook_pairs=300", "corpus.held_out=40", "tokenizer.vocab_size=400"]
    config = load_config([*small, f"output_dir={output_dir}", f"name={name}", "tracking.system_metrics=false", *words])
    prepared = prepare(config.corpus, config.clean, config.tokenizer, output_dir)
    run = run_for(config, prepared)
    corpus = prepared.corpus.folder
    validations = []
    with only_owner(run), open_tracker(run, prepared) as tracker:
        worker = SpoolTracker(run.folder)
        for step in range(10, STEPS + 1, 10):
            loss = 2 + 6 * math.exp(-quality * step / 60)
            speed = TOKENS_PER_STEP / SECONDS_PER_STEP
            worker.log_metrics({"train/loss": loss, "train/target_tokens_per_second": speed}, step)
            if step % VALIDATE_EVERY == 0:
                scores, hypotheses = _scores(corpus, "validation", quality * step / STEPS)
                evaluation = Evaluation(
                    loss,
                    {key: Score(**values) for key, values in scores.items()},
                    len(hypotheses),
                    samples=_samples(corpus, hypotheses),
                )
                report_validation(worker, run, step, evaluation)
                validations.append({"step": step, **evaluation.values()})
        worker.close()
        training = {"step": STEPS, "seconds": STEPS * SECONDS_PER_STEP, "validations": validations, "world_size": 2}
        tokens = {"source_tokens": STEPS * TOKENS_PER_STEP, "target_tokens": STEPS * TOKENS_PER_STEP}
        write_json(run.folder / TRAINING_FILE, training | tokens)
        report_training(run, tracker)
        folder, model = run.folder / "evaluation" / "made-up", run.folder / "model"
        for one in (folder, model):
            one.mkdir(parents=True)
        save_file({"made up": torch.zeros(3)}, model / "model.safetensors")
        result = {"folder": str(folder), "steps_averaged": [300, 400], "seconds": {}, "sentences": {}}
        result |= {"step": STEPS, "training_ended": True, "is_own_search": True, "search": "beam 4, length penalty 0.6"}
        for split in ("validation", "test"):
            result[split], hypotheses = _scores(corpus, split, quality)
            (folder / f"{split}.hypotheses").write_bytes("".join(f"{line}\n" for line in hypotheses).encode())
            result["seconds"][split], result["sentences"][split] = 2.0, len(hypotheses)
        sources, references = [_lines(corpus / f"test.{side}") for side in ("source", "target")]
        result["samples"] = [[sources[i], references[i], hypotheses[i]] for i in sample_places(len(sources))]
        write_json(folder / "result.json", result)
        report_evaluation(run, result, tracker)
    run_id = tracker.run_id()
    assert run_id is not None
    return run_id


def _scores(corpus: Path, split: str, quality: float) -> tuple[dict[str, dict], list[str]]:
    """The scores of translations of which the first are the references, and the rest say something else."""
    references = _lines(corpus / f"{split}.target")
    right = round(quality * len(references))
    hypotheses = references[:right] + [line[: len(line) // 2] for line in references[right:]]
    return {name: dataclasses.asdict(one) for name, one in score(hypotheses, references).items()}, hypotheses


def _samples(corpus: Path, hypotheses: list[str]) -> dict[str, list[str]]:
    sources, references = [_lines(corpus / f"validation.{side}") for side in ("source", "target")]
    columns = {"source": sources, "reference": references, "translation": hypotheses}
    return {name: [texts[i] for i in sample_places(len(sources))] for name, texts in columns.items()}


def _lines(path: Path) -> list[str]:
    return [line.decode() for line in read_lines(path)]
