"""What `transloom attend part=…` finds in models: a table, a JSON file and a picture each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transloom.jobs.attend.trained import Trained
from transloom.jobs.runs.workspace import stage_folder
from transloom.jobs.terminal.console import console, table
from transloom.pipeline.attention_maps import attentions
from transloom.pipeline.data.pairs import open_pairs
from transloom.pipeline.errors import UserError
from transloom.pipeline.figures.inside import draw_gradients, draw_heads, draw_lengths, draw_pruning
from transloom.pipeline.files import write_json
from transloom.pipeline.inside.alignment import LexicalAligner
from transloom.pipeline.inside.examples import loss_of, plain_objective, take_sample
from transloom.pipeline.inside.gradient import gradient_by_distance
from transloom.pipeline.inside.heads import head_scores, strongest
from transloom.pipeline.inside.positions import FACTORS, extrapolate
from transloom.pipeline.inside.prune import Head, Pruned, heads_of, parse_heads, prune, without
from transloom.pipeline.progress import Progress
from transloom.pipeline.tasks.build import TaskName, selecting_metric
from transloom.pipeline.tasks.task import Metric

LONGEST = 2048  # tokens of a text whose weights are looked at, which takes the square of it
ALIGNED_PAIRS = 10_000  # of train, from which alignments are learnt
PARTS = ("heads", "prune", "gradient", "positions")


@dataclass(frozen=True)
class PartSettings:
    """The words of a part.

    Attributes:
        examples: of the split that are looked at. split: of the corpus.
        points: of the curve of part=prune that are validated.
        stack: of part=prune: whose heads are taken out; empty: all. without: the heads to take out at once.
    """

    examples: int = 200
    split: str = "validation"
    points: int = 8
    stack: str = ""
    without: str = ""

    def __post_init__(self) -> None:
        for name, least in (("examples", 1), ("points", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, not {getattr(self, name)}")
        if self.split not in ("train", "validation", "test"):
            raise ValueError(f"split: must be train, validation or test, not {self.split!r}")


def heads_part(trained: Trained, settings: PartSettings, folder: Path, progress: Progress) -> list[Path]:
    """What each head looks at."""
    if not attentions(trained.model):
        raise UserError(f"{trained.run.name}: is recurrent, and has no heads of attention")
    sample = take_sample(trained.task, settings.split, settings.examples, LONGEST)
    aligner = _aligner(trained) if "cross" in attentions(trained.model) else None
    stacks = head_scores(trained.model, sample, trained.punctuation(), aligner, progress)
    for stack, scores in stacks.items():
        rows = []
        for name, values in scores.heads.items():
            best = [f"{layer}.{head}  {value:.2f}" for layer, head, value in strongest(values)]
            rows.append([name, f"{scores.uniform[name]:.2f}", *best, *[""] * (3 - len(best))])
        columns = ["looks at", "all alike", "strongest head", "second", "third"]
        console.print(table(f"\n{stack}: share of attention, by layer.head", columns, rows, right=(1,)))
    record = {
        "run": trained.run.name,
        "split": settings.split,
        "examples": len(sample.rows),
        "stacks": {
            stack: {
                name: {"uniform": scores.uniform[name], "heads": values.round(4).tolist()}
                for name, values in scores.heads.items()
            }
            for stack, scores in stacks.items()
        },
    }
    write_json(folder / "heads.json", record)
    title = f"What the heads of {trained.run.name} look at: share of attention, {len(sample.rows)} of {settings.split}"
    return [folder / "heads.json", draw_heads(stacks, title, folder / "heads.png")]


def _aligner(trained: Trained) -> LexicalAligner | None:
    """Alignments of the first pairs of train; None of pairs that are no translations."""
    if not trained.run.config.languages:
        return None
    pairs = open_pairs(stage_folder(trained.run.folder, "shards"), "train")
    sides = [
        [pairs.get(side, row)[:-1] for row in range(min(len(pairs), ALIGNED_PAIRS))] for side in ("source", "target")
    ]
    full = [(source, target) for source, target in zip(*sides, strict=True) if len(source) and len(target)]
    return LexicalAligner([source for source, _ in full], [target for _, target in full])


def prune_part(trained: Trained, settings: PartSettings, folder: Path, progress: Progress) -> list[Path]:
    """Scores against the number of heads left."""
    if settings.without and settings.stack:
        raise UserError("stack: without= names heads with their stacks; leave one of the two out")
    model, metric = trained.model, selecting_metric(trained.run.config.task, trained.run.config.corpus)
    sample = take_sample(trained.task, settings.split, settings.examples)

    def validate(changed: Any) -> dict[str, float]:
        values = trained.task.validate(changed).values()
        return {name: value for name, value in values.items() if np.isfinite(value)}

    if settings.without:
        return _without(trained, parse_heads(settings.without, model), sample, validate, folder)
    heads = heads_of(model, settings.stack or None)
    points = list(prune(model, sample, heads, settings.points, validate, progress))
    rows = [[str(p.left), str(p.head or ""), f"{p.loss:.4f}", _shown(metric, p)] for p in points]
    columns = ["heads left", "taken out", f"loss of {len(sample.rows)}", f"validation {metric.title}"]
    console.print(table(f"\nHeads of {trained.run.name}, the least needed first", columns, rows, right=(0, 2, 3)))
    where = settings.stack or "all"
    record = {"run": trained.run.name, "split": settings.split, "examples": len(sample.rows), "heads": where}
    write_json(folder / f"prune_{where}.json", record | {"points": [_point(point) for point in points]})
    title = f"{trained.run.name} with fewer heads ({where})"
    picture = draw_pruning(points, metric, title, folder / f"prune_{where}.png")
    return [folder / f"prune_{where}.json", picture]


def _shown(metric: Metric, point: Pruned) -> str:
    if not point.scores:
        return ""
    return metric.shown(point.scores[metric.name]) if metric.name in point.scores else "no number"


def _point(point: Pruned) -> dict[str, Any]:
    return asdict(point) | {"head": None if point.head is None else str(point.head)}


def _without(trained: Trained, heads: Sequence[Head], sample: Any, validate: Any, folder: Path) -> list[Path]:
    objective = plain_objective(trained.task, trained.model)
    batches = [batch.to(trained.model.embedding.weight.device) for batch, _ in sample.batches()]
    points = []
    for name, gone in (("all heads", []), (f"without {', '.join(map(str, heads))}", heads)):
        with without(trained.model, gone):
            points.append((name, loss_of(objective, batches), validate(trained.model)))
    scores = list(points[0][2])
    rows = [
        [name, f"{loss:.4f}", *(f"{values.get(score, np.nan):.4f}" for score in scores)]
        for name, loss, values in points
    ]
    columns = ["model", f"loss of {len(sample.rows)}", *(f"validation {score}" for score in scores)]
    console.print(table(f"\n{trained.run.name}", columns, rows, right=tuple(range(1, len(columns)))))
    record = [{"model": name, "loss": loss, "scores": values} for name, loss, values in points]
    write_json(folder / "without.json", {"run": trained.run.name, "models": record})
    return [folder / "without.json"]


def gradient_part(models: Sequence[Trained], settings: PartSettings, folder: Path) -> list[Path]:
    """The gradient by distance, before and after training."""
    gradients, counts = {}, set[int]()
    for trained in models:
        if trained.run.config.languages or "cross" in attentions(trained.model):
            raise UserError(f"{trained.run.name}: reads two texts; a distance is within one, of a language model")
        if trained.run.config.task in (TaskName.classification, TaskName.masked_language_model):
            raise UserError(f"{trained.run.name}: predicts no text's last token; take a language model's run")
        sample = take_sample(trained.task, settings.split, settings.examples, least_share=0.9)
        counts.add(len(sample.rows))
        for note, model in (("untrained", trained.untrained()), ("trained", trained.model)):
            gradients[f"{trained.run.name}, {note}"] = gradient_by_distance(model, sample)
    distances = list(dict.fromkeys(d for gradient in gradients.values() for d in gradient.distances))
    rows = [
        [
            name,
            *(f"{gradient.mean_at(d):.1e}" if d < len(gradient.norms) else "" for d in sorted(distances)),
            f"{gradient.rate:.4f}",
            f"{gradient.spread:,.1f}" if gradient.spread < 1e6 else f"{gradient.spread:.0e}".replace("inf", "vanished"),
        ]
        for name, gradient in gradients.items()
    ]
    columns = ["model", *(f"{d:,}" for d in sorted(distances)), "rate", "largest / smallest"]
    title = "\nNorm of d loss(last token) / d embedding, by tokens between them"
    console.print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
    record = {
        name: {"rate": _finite(gradient.rate), "spread": _finite(gradient.spread), "norms": gradient.norms.tolist()}
        for name, gradient in gradients.items()
    }
    write_json(folder / "gradient.json", record)
    texts = " and ".join(map(str, sorted(counts)))
    heading = f"Gradient at a distance, mean of {texts} texts of {settings.split}"
    return [folder / "gradient.json", draw_gradients(gradients, heading, folder / "gradient.png")]


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if np.isfinite(value) else None


def positions_part(models: Sequence[Trained], settings: PartSettings, folder: Path) -> list[Path]:
    """The loss at 1, 2 and 4 times the trained length."""
    results = {}
    for trained in models:
        if trained.run.config.task is not TaskName.language_model:
            raise UserError(f"{trained.run.name}: is of task={trained.run.config.task.value}; take language models")
        documents = trained.task.examples(settings.split)
        results[_positions_of(trained)] = extrapolate(trained.model, documents, settings.examples)
    _print_lengths(results)
    write_json(folder / "positions.json", {name: [r._asdict() for r in lengths] for name, lengths in results.items()})
    title = f"Read at longer lengths than trained on, {settings.split}"
    return [folder / "positions.json", draw_lengths(results, title, folder / "positions.png")]


def _positions_of(trained: Trained) -> str:
    positions = getattr(trained.run.config.model, "positions", None)
    return f"{trained.run.name}, {positions.value if positions else 'recurrent'}"


def _print_lengths(results: Mapping[str, Sequence[Any]]) -> None:
    rows = [
        [
            name,
            f"{lengths[0].length:,}",
            *("no positions" if r.loss is None else f"{r.loss:.3f}" for r in lengths),
            *("" if r.last_quarter is None else f"{r.last_quarter:.3f}" for r in lengths),
        ]
        for name, lengths in results.items()
    ]
    columns = [
        "model",
        "trained at",
        *(f"{factor}×" for factor in FACTORS),
        *(f"{factor}×, last quarter" for factor in FACTORS),
    ]
    title = "\nLoss in nats a token, by the length read at once"
    console.print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
