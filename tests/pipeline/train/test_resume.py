"""Where all ranks go on from: rank 0 reads, the others agree with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from transloom.pipeline.errors import UserError
from transloom.pipeline.ranks import on_any, rank
from transloom.pipeline.train import checkpoint
from transloom.pipeline.train.checkpoint import resume, save_checkpoint
from transloom.pipeline.train.optimizer import KINDS, EngineState


def save(folder: Path, step: int) -> Path:
    tensors = {f"{kind}/w": torch.full((10,), float(step)) for kind in KINDS}
    return save_checkpoint(folder, step, EngineState(tensors, {"adam_step": step}), {"step": step}, {}, keep=2)


def damage(path: Path) -> None:
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """No checkpoint; two; two of which the newer is damaged; a damaged one."""
    root = tmp_path_factory.mktemp("resume")
    empty, good, half, bad = (root / name for name in ("empty", "good", "half", "bad"))
    for folder in (good, half):
        save(folder, 10)
        newest = save(folder, 20)
    damage(newest)
    damage(save(bad, 10))
    return [empty, good, half, bad]


def resume_all(folders: list[Path]) -> list[Any]:
    """For each folder what this rank gets; it must be rank 0 to read anything."""
    if rank() != 0:
        checkpoint.newest_checkpoint = checkpoint._load_verified = None  # type: ignore[assignment]
    results: list[Any] = []
    for folder in folders:
        try:
            results.append(resume(folder))
        except UserError as error:
            results.append(str(error))
    return results


def ask_all() -> list[bool]:
    return [on_any(flag, torch.device("cpu")) for flag in (False, rank() == 1, True)]


def on_two_ranks(folders: list[Path]) -> dict[str, list[Any]]:
    return {"resumed": resume_all(folders), "asked": ask_all()}


@pytest.fixture(scope="module")
def ranks(folders: list[Path]) -> list[dict[str, list[Any]]]:
    """The results of each of two ranks."""
    return run_ranks(on_two_ranks, 2, folders)


def test_rank_0_reads_and_all_go_on_from_the_same_step(ranks: list[dict[str, list[Any]]]) -> None:
    first, second = (one["resumed"] for one in ranks)
    assert first[0] == second[0] == (None, None)
    for place, step in ((1, 20), (2, 10)):
        engine_state, trainer_state = first[place]
        assert trainer_state == {"step": step}
        assert engine_state.scalars == {"adam_step": step}
        assert torch.equal(engine_state.tensors["weights/w"], torch.full((10,), float(step)))
        assert second[place] == (None, {"step": step})
    assert first[3] == second[3] and "no checkpoint in" in first[3]


def test_one_rank_alone(folders: list[Path]) -> None:
    engine_state, trainer_state = resume(folders[1])
    assert engine_state is not None and trainer_state == {"step": 20}
    with pytest.raises(UserError, match="damaged: step_00000010"):
        resume(folders[3])


def test_what_one_rank_is_asked_all_know(ranks: list[dict[str, list[Any]]]) -> None:
    assert [one["asked"] for one in ranks] == [[False, True, True]] * 2
