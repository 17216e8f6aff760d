"""What the driver shows of the workers' progress."""

import time
from pathlib import Path

import pytest

from transloom.jobs.config.schema import Config
from transloom.jobs.terminal.console import following
from transloom.jobs.training import worker
from transloom.jobs.training.heartbeat import Heartbeat
from transloom.pipeline.files import write_json
from transloom.pipeline.run_folder import PROGRESS_FILE
from transloom.pipeline.tasks.translation import BLEU


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_progress_is_shown_whatever_the_clock_of_the_first_rank_says(
    hours: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    write_json(tmp_path / PROGRESS_FILE, {"step": 70, "max_steps": 100, "time": real() + 7200})  # an earlier attempt's
    with following(tmp_path / PROGRESS_FILE, BLEU), monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 3600 * hours)
        heartbeat = Heartbeat(tmp_path, 0, limit=0.0)
        reports = worker._reports(Config(), tmp_path, heartbeat, is_first=True)
        reports.progress({"step": 30, "max_steps": 100})
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines] == ["starting the workers …", "step 30/100"]
