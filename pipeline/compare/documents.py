"""Language models compared: bits per byte with tests over documents, and the documents on which they differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transloom.pipeline.compare.comparison import RunFacts, about_runs, facts_of_run
from transloom.pipeline.compare.seeds import seed_groups
from transloom.pipeline.evaluate.bootstrap import RESAMPLES, SEED, compare_ratios
from transloom.pipeline.files import hash_of
from transloom.pipeline.tasks.build import TaskName, selecting_metric


@dataclass(frozen=True)
class ReadBy:
    """What a run's model makes of the documents: (documents,) bits of the code of each, its end included."""

    name: str
    where: str
    bits: np.ndarray
    signature: str
    run: RunFacts


def compare_documents(
    systems: Sequence[ReadBy],
    num_bytes: np.ndarray,
    split: str,
    documents: str,
    baselines: Mapping[str, float],
    reach: float | None = None,
) -> dict[str, Any]:
    """Compares each model with the first one, the baseline, as JSON values.

    Args:
        systems: two at least, with different names.
        num_bytes: (documents,) of the text.
        split: that the documents are. documents: hash of their text.
        baselines: bits per byte of simple models on the same documents.
        reach: the validation's bits per byte that time and cost are counted to; None: the lowest that all runs reached.
    Raises:
        UserError: no run reached that.
    """
    metric = selecting_metric(TaskName.language_model)
    bits = {system.name: hash_of(system.bits.tolist()) for system in systems}
    tested = compare_ratios({system.name: system.bits for system in systems}, num_bytes)
    runs = {system.name: system.run for system in systems}
    first = systems[0].bits
    return {
        "key": hash_of([bits, systems[0].name, documents]),
        "task": "language_model",
        "names": [system.name for system in systems],
        "baseline": systems[0].name,
        "split": split,
        "documents": len(num_bytes),
        "bytes": int(num_bytes.sum()),
        "references": documents,
        "signatures": {},
        "resamples": RESAMPLES,
        "seed": SEED,
        "simple_models": dict(baselines),
        "systems": {
            system.name: {
                "where": system.where,
                "scores": {metric.name: asdict(tested[system.name])},
                "signature": system.signature,
                "documents": {
                    "better": int((system.bits < first).sum()),
                    "worse": int((system.bits > first).sum()),
                    "equal": int((system.bits == first).sum()),
                },
                **facts_of_run(system.run),
            }
            for system in systems
        },
        "seeds": seed_groups(
            {name: one.score for name, one in tested.items()}, {name: run.settings for name, run in runs.items()}
        ),
        **about_runs(runs, metric, reach),
    }


def farthest_apart(
    bits: Mapping[str, np.ndarray], num_bytes: np.ndarray, count: int
) -> list[tuple[int, dict[str, float]]]:
    """The documents on which the best and the worst model are farthest apart in bits per byte, farthest first: place,
    and bits per byte by model. Empty documents, and those on which all are equal, are left out."""
    ratios = {name: own / np.maximum(num_bytes, 1) for name, own in bits.items()}
    spread = np.ptp(np.stack(list(ratios.values())), axis=0)
    places = np.argsort(-spread, kind="stable")
    chosen = [int(place) for place in places if spread[place] > 0 and num_bytes[place] > 0][:count]
    return [(place, {name: float(ratio[place]) for name, ratio in ratios.items()}) for place in chosen]
