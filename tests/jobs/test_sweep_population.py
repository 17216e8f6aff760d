"""A population trains on with weights that others had, and what can't be cut into generations is refused."""

import json

import pytest
from command import TINY, transloom_here
from metrics import BLEU
from runs import checkpoint_state, differing, folder_of, losses, mlflow_runs, trajectory

from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.workspace import Run
from transloom.jobs.sweep.population import history_in_words, history_of, own_cost
from transloom.jobs.sweep.search import _study
from transloom.jobs.sweep.settings import refuse_impossible, sweep_settings, trial_config
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.sweep.space import Point
from transloom.pipeline.sweep.study import Record, State

RATE = "schedule.peak_learning_rate"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.generations=3"], r"^sweep\.generations: 3 of them cut train\.max_steps=1000 into shares of 333\.333"),
        (["train.validate_every=300"], r"^sweep\.generations: 4 of them .* into shares of 250 steps"),
        (["train.max_minutes=5"], r"^train\.max_minutes: the members of a population train for equally many steps"),
        (["train.patience=5"], r"^train\.patience: the members"),
        (["schedule=cosine", "schedule.warmup_steps=100"], r"^schedule\.name: .*cosine"),
        (["sweep.space.schedule.name={choices: [noam, linear]}"], r"^schedule\.name: .*linear"),
        (["sweep.space.model.num_heads={choices: [1, 2]}"], r"^sweep\.space\.model\.num_heads: can't change in the"),
        (["sweep.space.model.dropout={low: 0.0, high: 1.5}"], r"^sweep\.space: model\.dropout: .*tried: "),
    ],
)
def test_what_can_not_be_cut_into_generations_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        refuse_impossible(load_config(["sweep=pbt", "train.max_steps=1000", "train.validate_every=50", *words]))


def test_a_member_is_trained_to_the_end_of_its_generation():
    config = load_config(["experiment=multi30k_sweep", "sweep=pbt"])
    refuse_impossible(config)
    assert config.train.max_steps == 600
    point: Point = {RATE: 0.005}
    steps = [trial_config(config, Record(1, "s", point, BLEU, generation=g)).train.max_steps for g in (1, 2, 3, 4)]
    assert steps == [150, 300, 450, 600]
    assert trial_config(config, Record(1, "s", point, BLEU)).train.max_steps == 600


def test_the_settings_by_step_and_the_cost_are_of_the_lineage():
    config = load_config(["sweep=pbt", "sweep.generations=2", "train.max_steps=1000"])
    records = {
        1: Record(1, "s-001", {RATE: 0.1}, BLEU, State.finished, [(500, 3.0)], 10.0, generation=1, member=1),
        2: Record(2, "s-002", {RATE: 0.2}, BLEU, State.finished, [(500, 9.0)], 20.0, generation=1, member=2),
        3: Record(3, "s-003", {RATE: 0.3}, BLEU, State.finished, [(1000, 8.0)], 45.0, generation=2, member=1, parent=2),
    }
    history = history_of(records, records[3], config)
    assert history_in_words(history, BLEU) == [
        f"steps 0 to 500 (trial 2, BLEU 9.00): {RATE}=0.2",
        f"steps 500 to 1,000 (trial 3, BLEU 8.00): {RATE}=0.3",
    ]
    assert [own_cost(records, one) for one in records.values()] == [(500, 10.0), (500, 20.0), (500, 25.0)]


def test_a_population_gets_no_more_trials_and_is_nobodys_teacher(tmp_path):
    folder = tmp_path / "sweeps" / "bred"
    folder.mkdir(parents=True)
    config = load_config(["sweep=pbt", f"output_dir={tmp_path}"])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    write_json(folder / "sweep.json", {})
    with pytest.raises(UserError, match=r"^sweep\.trials: a population's trials are"):
        sweep_settings(["resume=bred", f"output_dir={tmp_path}", "sweep.trials=50"])
    assert sweep_settings(["resume=bred", f"output_dir={tmp_path}"])[0].sweep == config.sweep
    learner = load_config(["sweep=tpe", "sweep.warm_start=[bred]", f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"^sweep\.warm_start: the settings of bred changed while it trained"):
        _study(Run("next", folder.with_name("next"), learner), "any shards")


@pytest.mark.slow
def test_the_second_generation_goes_on_with_the_weights_of_the_best(place):
    words = [word for word in TINY if not word.startswith(("cluster.", "train.max", "train.checkpoint", "train.vali"))]
    words += ["train.max_steps=300", "train.checkpoint_every=150", "train.validate_every=75", "cluster.num_workers=1"]
    words += ["name=bred", "sweep=pbt"]
    words += ["sweep.population=2", "sweep.generations=2", "sweep.at_once=2"]
    words += ["sweep.space.model.dropout=null", "sweep.space.train.label_smoothing=null"]
    words += [f"sweep.space.{RATE}={{low: 1e-7, high: 0.1}}", f"sweep.points=[{{{RATE}: 0.02}}, {{{RATE}: 1e-6}}]"]
    outcome = transloom_here(place, "sweep", *words)
    assert "Traceback" not in outcome.out + outcome.err
    folder = place / "outputs" / "sweeps" / "bred"
    result = json.loads((folder / "result.json").read_bytes())
    trials = {one["trial"]: one for one in result["trials"]}
    places = {number: (one["generation"], one["member"], one["parent"]) for number, one in trials.items()}
    # The second member learns nothing, and takes over from the first.
    assert places == {1: (1, 1, None), 2: (1, 2, None), 3: (2, 1, 1), 4: (2, 2, 1)}
    rates = {number: one["point"][RATE] for number, one in trials.items()}
    assert rates[3] == rates[1] == 0.02 and rates[4] in (0.02 * 0.8, 0.02 * 1.25)

    parent = folder_of(place, "bred-001")
    for number in (3, 4):
        child = folder_of(place, f"bred-{number:03d}")
        assert differing(checkpoint_state(child, 150), checkpoint_state(parent, 150)) == []
        training = json.loads((child / "training.json").read_bytes())
        assert training["this_attempt"]["from_step"] == 150 and training["step"] == 300
        assert [int(one["step"]) for one in training["validations"]] == [75, 150, 225, 300]
        assert sorted(losses(child)) == list(range(155, 301, 5))  # every fifth is logged
        rate = dict(trajectory(child)["train/learning_rate"])[155]
        assert rate == pytest.approx(rates[number] * (20 / 155) ** 0.5)
    assert differing(checkpoint_state(folder_of(place, "bred-003"), 300), checkpoint_state(child, 300))

    best = result["best"]
    assert best["trial"] in (3, 4) and best["test"]["bleu"]["value"] > 0
    assert [(one["from_step"], one["to_step"]) for one in result["history"]] == [(0, 150), (150, 300)]
    assert [one["trial"] for one in result["history"]] == [1, best["trial"]]
    assert result["spent"]["target_tokens"] == 2 * best["target_tokens"]  # each share once
    assert (folder / "figures" / "population.png").read_bytes()[:4] == b"\x89PNG"
    assert f"transloom translate {best['run']} <" in outcome.out and "experiment=" not in outcome.out
    assert "Its settings changed while it trained" in (folder / "best.yaml").read_text(encoding="utf-8")
    again = load_config([f"experiment={folder}/best.yaml"])
    assert (again.schedule.peak_learning_rate, again.train.max_steps) == (best["point"][RATE], 300)

    runs = {run.info.run_name: run for run in mlflow_runs(place) if run.info.run_name.startswith("bred")}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}, runs
    sweep = runs.pop("bred")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {sweep.info.run_id} and len(runs) == 4
    tags = runs["bred-004"].data.tags
    assert [tags[f"sweep.{name}"] for name in ("generation", "member", "parent")] == ["2", "2", "bred-001"]
    assert [name for name, run in runs.items() if "test/bleu" in run.data.metrics] == [best["run"]]
