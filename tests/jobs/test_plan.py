"""Plans as a person types them: the paper's four models, what is refused, what comes next, and that nothing starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, TINY

from transloom.jobs.__main__ import main
from transloom.jobs.config.compose import load_config, with_absolute_paths
from transloom.pipeline.errors import UserError
from transloom.pipeline.plan import calibrate as calibration
from transloom.pipeline.plan.memory import ANY_MODEL, cpu_footing
from transloom.pipeline.plan.training import memory_alone

REFUSED = {
    "model.d_modle=512": "model.d_modle: no such setting. Did you mean model.d_model?",
    "price.h1000=3": "price.h1000: no such price; there are price.h200, price.h100, price.a100, price.cpu",
    "price.h100=cheap": "price.h100=cheap: must be US dollars",
    "price.h100=-1": "price.h100=-1: must be US dollars",
    "network.h1000=3": "network.h1000: no such network; there are network.h200, network.h100, ",
    "link.h100=0": "link.h100=0: must be GB/s",
    "network.a100=fast": "network.a100=fast: must be GB/s of each device between machines, such as network.a100=12.5",
    "calibrate=perhaps": "calibrate=perhaps: must be true or false",
    "--calibrat": "--calibrat: no such option",
    "demo": "demo: is not of the form key=value",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a command is given; nothing is there yet."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("word", REFUSED)
def test_a_mistake_is_refused_and_leaves_nothing(word: str, place: Path, capsys) -> None:
    assert main(["plan", word]) == 2
    assert REFUSED[word] in capsys.readouterr().err
    assert not (place / "outputs").exists()


@pytest.mark.parametrize("model", ["base", "big"])
@pytest.mark.parametrize("languages", ["en_de", "en_fr"])
def test_the_papers_models_are_planned_beside_the_papers_cost(
    model: str, languages: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"experiment=paper_{model}_{languages}", "precision=bf16", f"name={model}"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    plan = json.loads((place / "outputs" / "plans" / model / "plan.json").read_bytes())
    assert plan["paper"]["name"].startswith(model)
    assert "the paper, 8 x P100" in said and "here, 8 x H100, bf16" in said
    assert ("12 h" if model == "base" else "3.5 days") in said
    assert ("3.3e+18" if model == "base" else "2.3e+19") in said
    pairs = {"en_de": 4_500_000, "en_fr": 36_000_000}[languages]
    assert plan["data"]["pairs"] == pairs and f"published: {pairs:,} pairs" in said
    assert "all-reduce = 2 (W - 1) / W x bytes / bandwidth" in said
    assert (place / "outputs" / "plans" / model / "plan.png").stat().st_size > 20_000
    # Stage 1 is configured and fits
    assert said.rstrip().endswith(f"transloom run {' '.join(words)}")


def test_prices_are_the_users(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=paper_base_en_de", "name=one"]
    file = place / "outputs" / "plans" / "one" / "plan.json"

    def costs(*prices: str) -> dict[str, float]:
        assert main(["plan", *words, *prices]) == 0
        return {one["key"]: one["cost"] for one in json.loads(file.read_bytes())["hardware"]}

    before, after = costs(), costs("price.h100=6", "price.cpu=0")
    assert after["h100"] == pytest.approx(2 * before["h100"])
    assert after["cpu"] == 0 and after["a100"] == before["a100"]


def test_links_and_network_are_the_users(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ring of eight within a machine sends over the links, one of sixteen over the network."""
    words = ["experiment=paper_base_en_de", "batch.tokens=50000", "name=one"]
    file = place / "outputs" / "plans" / "one" / "plan.json"

    def sent(workers: int, *given: str) -> dict[str, float]:
        assert main(["plan", *words, f"cluster.num_workers={workers}", *given]) == 0
        rows = json.loads(file.read_bytes())["hardware"]
        return {one["key"]: one["step_seconds"]["communication"] for one in rows}

    for workers, given, other in ((8, "link.h100=3.6", "network.h100=0.4"), (16, "network.h100=0.4", "link.h100=3.6")):
        before, after = sent(workers), sent(workers, given)
        assert after["h100"] == pytest.approx(100 * before["h100"], rel=0.05)  # latencies stay
        assert after["a100"] == before["a100"] and sent(workers, other) == before


def test_a_plan_says_how_often_to_save_and_to_validate(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the time of paper_big's recipe goes into checkpoints and snapshots on today's GPUs."""
    words = ["experiment=paper_big_en_de", "name=big"]

    def planned(*more: str) -> dict:
        assert main(["plan", *words, *more]) == 0
        rows = json.loads((place / "outputs" / "plans" / "big" / "plan.json").read_bytes())["hardware"]
        return next(one for one in rows if one["key"] == "h100")

    before = planned()
    said = capsys.readouterr().out
    assert before["stops"]["share"] > 0.4 and 0.2 < before["validation_seconds"] < 3
    changes = [f"{key}={value}" for key, value in before["stops"]["changes"].items()]
    assert [word.partition("=")[0] for word in changes] == ["train.checkpoint_every", "train.validate_every"]
    assert f"{' '.join(changes)} makes that" in said
    after = planned(*changes)
    assert after["stops"]["share"] == pytest.approx(before["stops"]["share_after"]) and after["stops"]["share"] <= 0.05
    assert after["stops"]["changes"] == {} and "H100: checkpoints" not in capsys.readouterr().out
    saved = before["hours"] - after["hours"]  # without what is saved of validations
    assert saved < before["stops"]["saved_hours"] < 1.1 * saved


def test_what_does_not_fit_is_planned_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=paper_big_en_de", "batch.tokens=4000000", "batch.micro_tokens=500000"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "none fits" in said and "Recommended: smaller batch.micro_tokens" in said
    last = said.rstrip().rpartition("\n")[2].partition("#")[0].split()
    assert last[:2] == ["transloom", "plan"]
    less = load_config(last[2:])
    assert less.batch.tokens == 4_000_000 and 125_000 <= less.batch.micro_tokens <= 250_000


def test_a_prepared_corpus_is_counted_and_a_plan_has_one_folder(place: Path, capsys) -> None:
    from transloom.pipeline.data.prepare import prepare

    words = [*TINY, "tokenizer.vocab_size=600"]
    config = load_config(words)
    prepare(config.corpus, config.clean, config.tokenizer, place / "outputs")
    for _ in range(2):
        assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "counted: the corpus is prepared" in said and "(counted; at most 512 on each side)" in said
    (folder,) = (place / "outputs" / "plans").iterdir()
    plan = json.loads((folder / "plan.json").read_bytes())
    assert plan["data"]["pairs"] == 500 and plan["engine"]["name"] == "torch"
    assert "--calibrate  # measures this machine" in said
    with pytest.raises(UserError, match=r"batch\.micro_tokens: 16 is less than the longest"):
        main_raising(["plan", *words, "batch.micro_tokens=16"])


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (["experiment=language_model/gpt2_124m", "model=gpt1", "tokenizer.vocab_size=40478"], 116_534_784),
        (["experiment=language_model/gpt2_124m"], 124_439_808),
        (["experiment=language_model/gpt2_355m"], 354_823_168),
        (["experiment=language_model/gpt2_774m"], 774_030_080),
        (["experiment=language_model/gpt2_1558m"], 1_557_611_200),
        (["experiment=language_model/gpt3_175b"], 174_604_259_328),
    ],
)
def test_the_published_language_models_are_planned_without_a_corpus(
    words: list[str], parameters: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words, "name=gpt"]) == 0
    said = capsys.readouterr().out
    plan = json.loads((place / "outputs" / "plans" / "gpt" / "plan.json").read_bytes())
    assert plan["model"]["parameters"] == parameters and f"{parameters:,} parameters" in said
    assert "unknown: the corpus is not at hand" in said and plan["data"]["tokens"] is None
    config = load_config(words)
    tokens = config.batch.tokens * config.train.max_steps
    assert plan["model"]["flops"] == plan["model"]["flops_per_token"] * tokens
    own = plan["model"]["flops_per_token"] - plan["model"]["attention_flops_per_token"]
    assert own == pytest.approx(6 * parameters, rel=0.01)
    h200 = next(one for one in plan["hardware"] if one["key"] == "h200")
    assert h200["fits"]
    if parameters > 1e11:
        assert tokens == pytest.approx(300e9, rel=1e-4) and own * tokens == pytest.approx(3.143e23, rel=1e-3)
        # 16 bytes a parameter shared out, a billion gathered weights of two bytes, a bucket, and 1.5 GB of libraries
        parts = plan["memory"]["gpu"]["bf16"][3]
        assert parts["optimizer"] + parts["gradients"] == pytest.approx(16 * parameters / 1536 + 4 * 50e6)
        # A layer keeps 34 d_model bytes of a token (Korthikanti et al. 2022), less the masks of dropout
        assert parts["passing"] / 1.1 == pytest.approx(96 * 2048 * 12288 * 34, rel=0.1)
        # The micro-batch is one text already: the next plan has shorter ones
        last = said.rstrip().rpartition("\n")[2].partition("#")[0].split()
        assert load_config(last[2:]).model.max_positions == 1024


def test_a_language_models_documents_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transloom.pipeline.tasks.build import prepare_data

    text = place / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"Text {number}. " + "Some words are here. " * (number % 7 + 1))
    words = ["experiment=language_model/demo", "corpus=text", "corpus.train.text=text", "tokenizer.vocab_size=300"]
    words += ["model.max_positions=32", "batch.tokens=256", "batch.micro_tokens=64", "corpus.held_out.validation=0.2"]
    words += ["corpus.held_out.test=0.2", "name=lm"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "estimated from the size of 40 files" in said
    prepare_data(with_absolute_paths(load_config(words)), place / "outputs")
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    plan = json.loads((place / "outputs" / "plans" / "lm" / "plan.json").read_bytes())
    assert "counted: the corpus is prepared" in said
    assert f"{plan['data']['documents']} documents, {plan['data']['tokens']:,} tokens" in said
    assert plan["data"]["shard_bytes"] == 2 * plan["data"]["tokens"] + 4 * plan["data"]["documents"]
    assert plan["data"]["longest"] == 32 and plan["model"]["vocab_size"] <= 300


def main_raising(words: list[str]) -> None:
    import transloom.jobs.commands.plan

    transloom.jobs.commands.plan.main(words[1:])


def test_nothing_is_started_and_ray_is_not_even_imported(tmp_path: Path) -> None:
    code = "import sys; from transloom.jobs.__main__ import main; code = main(sys.argv[1:]); "
    code += "print(*sys.modules); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", f"output_dir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        check=True,
    )
    assert not set(done.stdout.rpartition("\n")[2].split()) & {"ray", "deepspeed", "mlflow", "datasets"}
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_calibrating_measures_this_machine(place: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(calibration, "TURN_SECONDS", 0.2)
    assert main(["plan", *TINY, "--calibrate", "name=tiny"]) == 0
    said = capsys.readouterr().out
    plan = json.loads((place / "outputs" / "plans" / "tiny" / "plan.json").read_bytes())
    cpu = next(one for one in plan["hardware"] if one["key"] == "cpu")
    assert cpu["origin"] == "measured" and plan["calibration"]["workers"] == min(2, len(os.sched_getaffinity(0)))
    assert "This CPU: measured" in said and "--calibrate  #" not in said
    assert 1e-4 < cpu["step_seconds"]["total"] < 5
    assert cpu["memory_bytes"] > plan["calibration"]["training_bytes"] > 1e7
    assert sorted(path.name for path in (place / "outputs").iterdir()) == ["plans"]


@pytest.mark.slow
def test_a_language_models_memory_is_what_was_planned(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that a process which trains holds beside its libraries, within what translations are held to."""
    from transloom.jobs.commands.plan import calibrate_here, training_of

    monkeypatch.setattr(calibration, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(calibration, "TURN_SECONDS", 0.2)
    words = ["experiment=language_model/demo", "precision=fp32", "cluster.num_workers=1"]
    config = with_absolute_paths(load_config(words))
    training = training_of(config, None)
    measured = calibrate_here(config, training)
    planned = memory_alone(training, measured.micro_batches, cpu_footing(False)) + ANY_MODEL
    assert planned == pytest.approx(measured.training_bytes, rel=0.2)
    assert measured.flops_alone > 1e8


def test_more_memory_than_there_is_is_refused_before_anything_starts(place: Path, capsys) -> None:
    words = ["experiment=paper_big_en_de", "batch.tokens=4000000", "batch.micro_tokens=500000", "--calibrate"]
    assert main(["plan", *words]) == 2
    assert "calibrate: 3 processes would need about" in capsys.readouterr().err.replace("2 processes", "3 processes")


def test_help_tells_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    assert "usage: transloom plan [--calibrate] [price.h100=2.5]" in capsys.readouterr().out
