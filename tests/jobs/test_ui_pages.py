"""What a person sees in MLflow's pages, in a real browser: the best run, its parameters, its data, its model. It holds
us to what these pages make of our reports, and tells when another version of MLflow arranges them otherwise."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NAMES, Browser, find_browser
from mlflow_database import give_database
from reported import report_run

from transloom.pipeline.tracking.address import run_url

ROOT = Path(__file__).resolve().parents[2]
ROWS = """
[...document.querySelectorAll('.ag-pinned-left-cols-container .ag-row')]
    .map(row => Number(row.getAttribute('row-index'))).sort((a, b) => a - b)
    .map(index => Object.fromEntries([...document.querySelectorAll(`.ag-row[row-index="${index}"] .ag-cell`)]
        .map(cell => [cell.getAttribute('col-id'), cell.innerText.trim()])))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """An output folder with three runs, of which the last is a trial of the first; MLflow's ids by name."""
    if find_browser() is None:
        pytest.skip(f"there is no browser here ({', '.join(NAMES)})")
    folder = tmp_path_factory.mktemp("outputs")
    give_database(tmp_path_factory, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ids = {
            "middling": report_run(folder, "middling", 0.5),
            "best": report_run(folder, "best", 0.9, "model.d_model=192"),
            "worst": report_run(folder, "worst", 0.2, "seed=7"),
        }
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        client.set_tag(ids["worst"], "mlflow.parentRunId", ids["middling"])
    yield folder, ids


@pytest.fixture(scope="module")
def served(runs: tuple[Path, dict[str, str]]) -> Iterator[list[str]]:
    """The lines in which `transloom ui` says what it serves, while it does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "transloom.jobs", "ui", f"output_dir={runs[0]}"]
    log = runs[0] / "ui.log"  # not a pipe, which would be full one day: the server tells of every request
    with open(log, "wb") as out, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out) as server:
        try:
            deadline = time.monotonic() + 300
            while len(lines := log.read_text().splitlines()[:3]) < 3 or not _is_up(lines[0].split()[2]):
                assert server.poll() is None and time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.2)
            yield lines
        finally:
            server.terminate()
        assert server.wait(timeout=120) in (0, -signal.SIGTERM)


def _is_up(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=30).read() == b"OK"
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser(served: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find_browser()
    assert path is not None
    profile = tmp_path_factory.mktemp("browser") / "profile"
    profile.mkdir()
    with Browser(path, profile, width=3200, height=1200) as one:  # what is not in sight is not drawn
        yield one


def scores(folder: Path, run: str) -> dict[str, float]:
    result = json.loads((folder / "runs" / run / "evaluation" / "made-up" / "result.json").read_text())
    return {metric: round(one["value"], 2) for metric, one in result["test"].items()}


def test_the_list_that_is_announced_has_the_best_run_first(
    runs: tuple[Path, dict[str, str]], served: list[str], browser: Browser, tmp_path: Path
):
    folder, _ = runs
    announced = served[1].split()[-1]
    assert served[1].startswith("The runs, best first:") and announced.startswith("http://127.0.0.1:")
    browser.open(announced)
    browser.wait_for("test/bleu", "best", "middling", "worst", str(scores(folder, "best")["bleu"]))
    browser.screenshot(tmp_path / "runs.png")
    rows = browser.evaluate(ROWS)
    names = [row["attributes.`Run Name`"].split()[-1] for row in rows]  # behind its colour
    assert names == ["best", "middling", "worst"], rows
    for name, row in zip(names, rows, strict=True):
        own = scores(folder, name)
        assert float(row["metrics.`test/bleu`"]) == own["bleu"]
        assert float(row["metrics.`training/seconds`"]) == 40.0
    assert [row["params.`model.d_model`"] for row in rows] == ["192", "128", "128"]
    assert [row["params.`seed`"] for row in rows] == ["1", "1", "7"]

    browser.open(f"{announced}&compareRunsMode=CHART")
    browser.wait_for("which run is best", "test/bleu", "validation/bleu", "train/loss")
    browser.wait_until("document.querySelectorAll('.barlayer .point').length >= 3", "a bar for each run")
    browser.wait_until("document.querySelectorAll('.js-plotly-plot').length >= 4", "the curves")
    browser.screenshot(tmp_path / "charts.png")


def test_a_runs_page_has_its_scores_parameters_data_and_model(
    runs: tuple[Path, dict[str, str]], served: list[str], browser: Browser, tmp_path: Path
):
    folder, ids = runs
    assert served[2].startswith("The newest run, worst: ") and ids["worst"] in served[2]
    browser.open(run_url(served[0].split()[2], "1", ids["best"]))
    shown = browser.wait_for("Parameters (", "Metrics (", "model.d_model", "averaged-400", "step-400")
    browser.screenshot(tmp_path / "run.png")
    assert f"BLEU {scores(folder, 'best')['bleu']:.2f}" in shown
    assert "transformer, 2 + 2 layers, d_model 192" in shown
    assert "phrasebook_en_de, en-de: pairs 300 train, 40 validation, 40 test" in shown
    assert "transloom translate best < your_text" in shown
    assert "phrasebook_en_de train (" in shown, "the data set"
    assert "tracking.uri" not in shown


def test_a_runs_pictures_and_translations_are_seen_among_its_artifacts(
    runs: tuple[Path, dict[str, str]], served: list[str], browser: Browser, tmp_path: Path
):
    folder, ids = runs
    browser.open(f"{served[0].split()[2]}/#/experiments/1/runs/{ids['best']}/artifacts")
    browser.wait_for("figures", "evaluation", "config.yaml", "test_samples.json")
    browser.open(f"{served[0].split()[2]}/#/experiments/1/runs/{ids['best']}/artifacts/figures/curves.png")
    browser.wait_for("curves.png")
    browser.wait_until("[...document.images].some(image => image.naturalWidth == 1000)", "the picture")
    browser.screenshot(tmp_path / "picture.png")
    result = json.loads((folder / "runs" / "best" / "evaluation" / "made-up" / "result.json").read_text())
    browser.open(f"{served[0].split()[2]}/#/experiments/1/runs/{ids['best']}/artifacts/test_samples.json")
    browser.wait_for("reference", "translation", result["samples"][0][0], result["samples"][0][2])
    browser.screenshot(tmp_path / "samples.png")


def test_the_models_of_all_runs_are_listed_with_what_they_come_from(
    runs: tuple[Path, dict[str, str]], served: list[str], browser: Browser, tmp_path: Path
):
    browser.open(f"{served[0].split()[2]}/#/experiments/1/models?workflowType=machine_learning")
    shown = browser.wait_for("averaged-400", "step-400", "Source run", "best", "worst")
    browser.screenshot(tmp_path / "models.png")
    assert shown.split().count("averaged-400") == len(runs[1])


def test_two_runs_compared_show_their_scores_side_by_side(
    runs: tuple[Path, dict[str, str]], served: list[str], browser: Browser, tmp_path: Path
):
    folder, ids = runs
    two = json.dumps([ids["best"], ids["middling"]])
    browser.open(f'{served[0].split()[2]}/#/compare-runs?runs={two}&experiments=["1"]')
    shown = browser.wait_for("Comparing 2 Runs", "best", "middling", "test/bleu", "model.d_model")
    browser.screenshot(tmp_path / "compare.png")
    for name in ("best", "middling"):
        assert str(scores(folder, name)["bleu"]) in shown
    assert "output_dir" not in shown, "where files go is no difference between models"
