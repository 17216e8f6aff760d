"""Every file of conf/ composes; whatever is wrong is refused by its full name, before anything is started."""

import dataclasses
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from transloom.jobs.cli import configuration, sort_words
from transloom.jobs.config.compose import from_dict, load_config, read_config, to_dict, to_yaml, with_absolute_paths
from transloom.jobs.config.groups import groups
from transloom.jobs.config.messages import CONTENDERS
from transloom.jobs.config.schema import Config
from transloom.model.config import Norm, RecurrentConfig, TransformerConfig
from transloom.pipeline.data.corpus_config import CorpusKind
from transloom.pipeline.data.documents import DocumentsConfig
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NEEDS_FILES = {
    "text": ["corpus.train.source=a.en", "corpus.train.target=a.de"],
    "sources": ["corpus.train.sources=[{name: a, files: [a.en, a.de]}]"],
    "language_model/shakespeare_char": ["corpus.train.text=a.txt"],
}
OF_LANGUAGE_MODELS = re.compile(r"corpus=(standard_library|fineweb)|tokenizer=(byte|characters)|model=(gpt|lm_)")


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes(experiment):
    assert isinstance(load_config([f"experiment={experiment}", *NEEDS_FILES.get(experiment, [])]), Config)


# Options that are of another task than the demo's -> an experiment of that task.
OF_TASKS = {
    OF_LANGUAGE_MODELS: ["experiment=language_model/demo", "batch.tokens=4096", "batch.micro_tokens=2048"],  # of GPT-3
    re.compile("corpus=(debian_summaries|django_en_python|records|xquad_en)"): ["experiment=transfer/django_en_python"],
    re.compile("corpus=synthetic"): ["experiment=probe/copy_memory"],
    re.compile("corpus=(labelled|sst2)|model=encoder_"): ["experiment=transfer/classification"],
}


@pytest.mark.parametrize("word", [f"{group}={option}" for group, options in groups().items() for option in options])
def test_every_option_composes(word):
    task = next((words for pattern, words in OF_TASKS.items() if pattern.match(word)), [])
    assert isinstance(load_config([*task, word, *NEEDS_FILES.get(word.rpartition("=")[2], [])]), Config)


def test_the_sections_of_a_task_are_its_own(tmp_path):
    words = ["experiment=language_model/demo", "corpus=text", "corpus.train.text=[a b.txt, c/*.jsonl.gz]"]
    words += ["tokenizer=characters", "corpus.held_out.by=tail", f"output_dir={tmp_path}"]
    config = load_config(words)
    assert isinstance(config.corpus, DocumentsConfig) and isinstance(config.tokenizer, TextTokenizerConfig)
    assert config.corpus.train.patterns == ("a b.txt", "c/*.jsonl.gz")
    absolute = with_absolute_paths(config).corpus.train.patterns
    assert absolute == (f"{Path.cwd()}/a b.txt", f"{Path.cwd()}/c/*.jsonl.gz")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path / "config.yaml") == config
    assert config.languages is None and load_config([]).languages == ("en", "de")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["corpus=standard_library"], r"^corpus\.kind: standard_library is a value of task=language_model"),
        (["experiment=language_model/demo", "corpus.kind=phrasebook"], r"^corpus\.kind: "),
        (["corpus=text", "corpus.train.text=a.txt"], r"^corpus\.train\.text: is a setting of task=language_model"),
        (["tokenizer=characters"], r"^tokenizer\.kind: characters is a value of task=language_model"),
        (["model=lm_small"], r"^model\.architecture: "),
        (["task=language_model"], r"^corpus\.source_language: is a setting of task=translation"),
        (["experiment=language_model/demo", "model=tiny"], r"^model\.architecture: "),
        (["experiment=language_model/demo", "clean.max_words=3"], r"^clean: "),
        (["model.attention=linear", "model.positions=alibi"], r"^model\.positions: alibi "),
        (["experiment=long_context/window_1k", "model.window=0"], r"^model\.window: must be at least 1"),
        (["model.attention=sparse"], r"^model\.attention: "),
        (
            ["experiment=language_model/demo", "corpus.held_out=500"],
            r"^corpus\.held_out: 500 is a value of task=translation",
        ),
        (["experiment=language_model/demo", "batch.micro_tokens=128"], r"^batch\.micro_tokens: "),
        (["experiment=language_model/demo", "corpus.held_out.validation=0"], r"^corpus\.held_out\.validation: "),
        (["experiment=language_model/demo", "corpus.nonsense=1"], r"^corpus\.nonsense: no such setting"),
    ],
)
def test_settings_of_another_task_are_refused_by_their_full_name(words, key):
    with pytest.raises(UserError, match=key):
        load_config(words)


def test_every_group_of_the_schema_has_a_default_that_the_command_line_overrides():
    assert load_config([]) == load_config(["experiment=demo"])
    config = load_config(["model=big", "model.dropout=0.25", "corpus=multi30k_en_fr", "corpus.path=/a b/c"])
    assert (config.model.d_model, config.model.dropout) == (1024, 0.25)
    assert (config.corpus.target_language, config.corpus.path) == ("fr", "/a b/c")


def test_data_files_take_names_of_ones_own():
    words = ["corpus=wmt14_en_de", "corpus.dataset=parquet", "corpus.data_files={train: a.parquet, test: b.parquet}"]
    assert load_config(words).corpus.data_files == {"train": "a.parquet", "test": "b.parquet"}


def test_yaml_reads_back_as_the_same_configuration(tmp_path):
    config = load_config(["experiment=paper_big_en_de", "corpus.data_files={train: a.parquet}", "output_dir=a b"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config
    assert to_dict(config)["corpus"]["kind"] == CorpusKind.dataset.value


def test_a_stored_configuration_from_before_a_section_takes_the_sections_defaults(tmp_path):
    settings = to_dict(load_config(["seed=3"]))
    del settings["evaluate"]
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(["seed=3"])).replace("evaluate:\n  tokenize: null\n", ""))
    assert "evaluate" not in (tmp_path / "config.yaml").read_text()
    assert read_config(tmp_path / "config.yaml") == load_config(["seed=3"])


def test_a_stored_configuration_that_no_longer_fits_is_refused_by_name(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {d_modle: 3}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config.yaml: model.d_modle: .* Did you mean model.d_model\?"):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("- a list\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config.yaml: must have settings"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        read_config(tmp_path / "nowhere.yaml")


def test_an_architecture_has_its_own_settings_and_survives_yaml(tmp_path):
    config = load_config(["model=lstm", "model.dropout=0.3"])
    assert config.model == RecurrentConfig(d_model=384, encoder_layers=2, decoder_layers=2, dropout=0.3)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config
    assert to_dict(load_config(["model=small"]))["model"]["architecture"] == "transformer"


def test_an_experiment_takes_a_model_of_another_architecture():
    assert load_config(["experiment=multi30k_en_de"]).model == TransformerConfig(
        d_model=256, d_ff=1024, num_heads=4, encoder_layers=3, decoder_layers=3, dropout=0.3, norm=Norm.pre
    )
    assert load_config(["experiment=multi30k_en_de", "model=lstm"]).model == RecurrentConfig(
        d_model=384, encoder_layers=2, decoder_layers=2, dropout=0.3
    )


def test_a_stored_configuration_without_an_architecture_is_a_transformers(tmp_path):
    text = to_yaml(load_config(["model=small"])).replace("  architecture: transformer\n", "")
    assert "architecture" not in text
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == load_config(["model=small"])


def test_a_setting_of_another_architecture_is_refused_with_those_that_there_are():
    with pytest.raises(
        UserError, match=r"^model\.num_heads: is a setting of model\.architecture=transformer; .* lstm, .*"
    ):
        load_config(["model=lstm", "model.num_heads=4"])
    with pytest.raises(UserError, match=r"^model\.architecture: 'rnn' is none of transformer, lstm"):
        load_config(["model.architecture=rnn"])
    with pytest.raises(UserError, match=r"^model\.dropout: must be in"):
        load_config(["model=lstm", "model.dropout=2"])


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config([]).seed = 2  # pyright: ignore[reportAttributeAccessIssue]


REFUSED = {
    "resume=": ["resume: is empty"],
    "--hlp": ["--hlp: no such option", "--help"],
    # a typo: in a key, in a section, in a group, in an option; the right word in the wrong place
    "model.d_modle=512": ["model.d_modle: no such setting", "Did you mean model.d_model?"],
    "modl.d_model=512": ["Did you mean model.d_model?"],
    "corpus.train.sorce=a.en": ["Did you mean corpus.train.source?"],
    "experimnt=demo": ["Did you mean experiment?"],
    "experiment=multi30k_en_dee": ["Did you mean experiment=multi30k_en_de?", "There is: ", " demo, ", "table3_big"],
    # a hint is of the same section, or is none: the section's settings are named
    "tokenizer.kind=file": ["tokenizer.kind: file is a value of task=language_model; this task is translation"],
    "decode.sharpness=1": ["decode.sharpness: no such setting. decode has beam, "],
    "model.depth=2": ["model.depth: no such setting. model has "],
    "model.layers=2": ["model.layers: is a setting of model.architecture=decoder_only"],
    "train.max_step=2": ["Did you mean train.max_steps?"],
    "warmup_steps=10": ["Did you mean schedule.warmup_steps?"],
    "optimizer.warmup_steps=10": ["Did you mean schedule.warmup_steps?"],
    # a wrong type
    "model.d_model=wide": ["model.d_model: 'wide' is not a whole number"],
    "model.num_heads=1.5": ["model.num_heads: '1.5' is not a whole number"],
    "race.lengths=[8, long]": ["race.lengths[1]: 'long' is not a whole number"],
    "model.dropout=a little": ["model.dropout: 'a little' is no number"],
    "tracking.enabled=perhaps": ["tracking.enabled: 'perhaps' is neither true nor false"],
    "precision.dtype=bf61": ["precision.dtype: 'bf61' is not one of auto, fp32, bf16, fp16"],
    "corpus.path=[a]": ["corpus.path: ['a'] is not a text"],
    "race.lengths=8": ["race.lengths: is not a list, which is written as [a,b]"],
    "corpus.data_files=a.json": ["corpus.data_files: is not a dictionary, which is written as {a: b}"],
    "seed=null": ["seed: can't be null; give it a value, or leave it out"],
    "tracking.enabled=null": ["tracking.enabled: can't be null"],
    "race.lengths=null": ["race.lengths: can't be null"],
    "race.contenders=null": ["race.contenders: can't be null"],
    "race.lengths=[8, null]": ["race.lengths[1]: can't be null"],
    "race.contenders={a: [model=small]}": ["is not of the form", f"Contenders are written as {CONTENDERS}."],
    "race.contenders=model": ["race.contenders: ", f"Contenders are written as {CONTENDERS}."],
    "model=512": ["model=512: no such option", "base, big"],
    "model=null": ["model=null: no such option"],
    "model={d_model: 3}": ["model={d_model: 3}: no such option"],
    "train=3": ["train: is a section, not a setting. In it: train."],
    # an impossible value
    "model.d_model=130": ["model.d_model: 130 is not divisible by num_heads: 4"],
    "engine.zero_stage=4": ["engine.zero_stage: must be 0, 1, 2 or 3, not 4"],
    "schedule.final_ratio=1.1": ["schedule.final_ratio: must be from 0 to 1"],
    "schedule.decay_share=0": ["schedule.decay_share: must be above 0"],
    "cluster.num_workers=0": ["cluster.num_workers: must be at least 1"],
    "cluster.num_workers=1000": ["cluster.num_workers: 1000 workers", "batch.tokens"],
    "cluster.cpus_per_worker=0": ["cluster.cpus_per_worker: must be more than 0"],
    "cluster.gpus_per_worker=0.5": ["cluster.gpus_per_worker: must be 0 or 1"],
    "cluster.max_failures=-1": ["cluster.max_failures: must be at least 0"],
    "corpus=text": ["corpus.train: source and target must be set"],
    "name=../evil": ["name: becomes a folder's name", "'../evil'"],
    "tracking.uri=foo:bar": ["tracking.uri: 'foo:bar' is no address"],
    "name=${nowhere}": ["name: Interpolation key 'nowhere' not found"],
    # what Hydra knows and a run does not
    "+model.colour=red": ["model.colour: no such setting"],
    "++model.d_model=512": ["write model.d_model=<value>"],
    "~seed": ["~seed: settings are neither added nor removed"],
    "seed=1,2": ["seed=1,2: one value at a time"],
    "corpus@model=text": ["corpus@model=text: no such option"],
    "hydra.run.dir=x": ["hydra.run.dir: no such setting"],
    "corpus._target_=os.system": ["_target_", "never run"],
    "name=${hydra:runtime.cwd}": ["${hydra:…}", "never run"],
    "demo": ["demo: is not of the form key=value"],
    "": ["is not of the form key=value"],
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_mistake_is_refused_by_its_full_name(word):
    with pytest.raises(UserError) as refusal:
        load_config([word])
    for part in REFUSED[word]:
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "warmup_stable_decay"])
def test_a_schedule_that_does_not_fit_into_the_training_is_refused(name):
    words = [f"schedule={name}", "train.max_steps=100"]
    with pytest.raises(UserError, match=r"^schedule\.warmup_steps: .*train\.max_steps=100"):
        load_config([*words, "schedule.warmup_steps=101"])
    assert load_config([*words, "schedule.warmup_steps=101"], are_changes=True).train.max_steps == 100
    assert load_config([*words, "schedule.warmup_steps=50"]).schedule.name.value == name
    assert load_config(["schedule=noam", "schedule.warmup_steps=4000", "train.max_steps=100"])
    if name == "warmup_stable_decay":
        with pytest.raises(UserError, match=r"^schedule\.decay_share: .*schedule\.warmup_steps=81"):
            load_config([*words, "schedule.warmup_steps=81"])


@pytest.fixture(scope="module")
def import_seconds() -> float:
    """What this machine takes to import what every command needs."""
    before = _processor_seconds_of_children()
    subprocess.run([sys.executable, "-c", "import torch, hydra"], check=True)
    return _processor_seconds_of_children() - before


def test_mistakes_are_refused_in_seconds_before_ray_is_imported(import_seconds):
    """Fault 24: exit code 2, at most 5 s (where importing torch takes as long by itself: half again as much), one
    message and no traceback."""
    words = ["model.d_modle=512", "model.d_model=wide", "model.d_model=130"]
    code = (
        "import sys; from transloom.jobs.__main__ import main; codes = [main(['run', word]) for word in sys.argv[1:]]; "
    )
    code += "print(*sys.modules); sys.exit(codes != [2, 2, 2])"
    before = _processor_seconds_of_children()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, check=False)
    elapsed_seconds = _processor_seconds_of_children() - before
    assert done.returncode == 0
    said = done.stderr.splitlines()
    assert [line.split()[:2] for line in said] == [["transloom:", f"{word.partition('=')[0]}:"] for word in words]
    assert not set(done.stdout.split()) & {"ray", "deepspeed", "mlflow", "datasets"}
    assert elapsed_seconds <= max(5, 2 * import_seconds)


def _processor_seconds_of_children() -> float:
    """Unlike the clock's, these seconds hardly grow when the machine is busy with something else."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def numbers() -> list[str]:
    """Every setting that takes a number which need not be whole."""
    sections = {name: part for name, part in to_dict(load_config([])).items() if isinstance(part, dict)}
    return [f"{name}.{key}" for name, part in sections.items() for key, value in part.items() if type(value) is float]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_number_is_infinite(value: str) -> None:
    expected = {"model.dropout", "train.max_minutes", "decode.length_penalty", "sweep.minutes", "clean.max_ratio"}
    keys = numbers()
    assert len(keys) > 12 and len(expected & set(keys)) >= 4
    settings = to_dict(load_config([]))
    for key in keys:
        section, _, name = key.partition(".")
        with pytest.raises(UserError, match=rf"^{re.escape(key)}: must be a finite number"):
            if value == "nan":
                load_config([f"{key}={value}"])
            else:  # on the command line one is as the other
                from_dict(settings | {section: settings[section] | {name: float(value)}})
    for key in ("seed", "train.max_steps", "decode.beam"):
        with pytest.raises(UserError, match=rf"^{re.escape(key)}: "):
            load_config([f"{key}={value}"])
    with pytest.raises(UserError, match=r"^sweep\.space\.model\.dropout\.high: must be a finite number"):
        load_config([f"sweep.space={{model.dropout: {{low: 0.0, high: {value}}}}}"])
    with pytest.raises(UserError, match=r"^sweep\.points\[0\]\.model\.dropout: must be a finite number"):
        load_config([f"sweep.points=[{{model.dropout: {value}}}]"])


@pytest.mark.parametrize("seed", ["-1", "4294967296", "-9999999999999999999"])
def test_a_seed_is_in_the_range_that_every_library_takes(seed: str) -> None:
    with pytest.raises(UserError, match=r"^seed: must be from 0 to 4294967295"):
        load_config([f"seed={seed}"])
    assert load_config(["seed=0"]).seed == 0 and load_config(["seed=4294967295"]).seed == 2**32 - 1


NAMES = [
    *(
        "données/été.en",
        "コーパス.ja",
        "a=b.en",
        "data (1).en",
        "[1] a.en",
        "a,b.en",
        "it's.en",
        'say "hi".en',
        "{x}.en",
    ),
    *(
        "a b",
        " a ",
        "50%.en",
        "a%20b?c#d",
        "1e5",
        "007",
        "1_000",
        "true",
        "a:b",
        "a;b&c",
        "my_target_.en",
        "@a!",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_may_have_any_character(name):
    config = load_config([f"corpus.train.source={name}", f"output_dir={name}", f"corpus.data_files.train={name}"])
    assert config.corpus.train.source == config.output_dir == config.corpus.data_files["train"] == name
    assert from_dict(to_dict(config)) == config


def test_a_text_in_quotes_is_what_the_quotes_hold():
    for quoted in ("'a, b'", '"a, b"', "a\\, b"):
        assert load_config([f"corpus.path={quoted}"]).corpus.path == "a, b"
    assert load_config(["corpus.path=null"]).corpus.path is None


def test_what_a_value_that_cant_be_read_needs_is_said_with_its_key():
    word = "corpus.data_files={train: données.json}"
    with pytest.raises(UserError, match=r"""'corpus\.data_files=\{a: "b c"\}'"""):
        load_config([word])
    load_config(['corpus.data_files={train: "données.json"}'])
    with pytest.raises(UserError, match=r"^corpus\.pth: no such setting\. Did you mean corpus\.path\?"):
        load_config(["corpus.pth=été"])


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["corpus=text", "corpus.train.source=~/a.en", "corpus.train.target=~/a.de", "output_dir=~/out"]
    words += ["storage=file://~/store", "corpus.data_files.train=~/rows.json"]
    config = configuration("run", words)
    assert config.corpus.train.source == f"{tmp_path}/a.en" and config.corpus.train.target == f"{tmp_path}/a.de"
    assert config.corpus.data_files == {"train": f"{tmp_path}/rows.json"}
    assert config.output_dir == f"{tmp_path}/out" and config.storage == f"file://{tmp_path}/store"
    with_path = configuration("run", [*words, "corpus.path=~/corpus"])
    assert with_path.corpus.path == f"{tmp_path}/corpus" and with_path.corpus.train.source == f"{tmp_path}/a.en"
    assert with_absolute_paths(load_config(["resume=~/runs/one"])).resume == f"{tmp_path}/runs/one"
    assert with_absolute_paths(load_config(["storage=s3://~/store"])).storage == "s3://~/store"
    found = sort_words(["~/run", "references=~/ref", "decode.beam=2"], own=("references",))
    assert found == ([f"{tmp_path}/run"], {"references": f"{tmp_path}/ref"}, ["decode.beam=2"])


def test_a_file_may_have_an_equals_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.en").touch()
    assert sort_words(["a=b.en", "c=d.en"]) == (["a=b.en"], {}, ["c=d.en"])


def test_paths_count_from_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configuration("run", ["corpus=text", "corpus.train.source=a.en", "corpus.train.target=/b/a.de"])
    assert config.corpus.train.source == str(tmp_path / "a.en")
    assert config.corpus.train.target == "/b/a.de"
    assert config.output_dir == str(tmp_path / "outputs")
    config = configuration("run", ["corpus=multi30k_en_de", "corpus.path=../folder"])
    assert config.corpus.path == str(tmp_path / ".." / "folder")
    assert config.corpus.train.source == "train.en"
    words = ["corpus=text", "corpus.kind=dataset", "corpus.dataset=json", "corpus.train.split=train"]
    config = configuration("run", [*words, 'corpus.data_files={train: "https://host/a.json", test: b.json}'])
    assert config.corpus.data_files == {"train": "https://host/a.json", "test": str(tmp_path / "b.json")}


def test_labels_are_smoothed_by_default_for_translation_alone(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "# @package _global_\ndefaults:\n  - override /corpus: standard_library\n  - override /tokenizer: byte_bpe_2k\n"
        "  - override /model: lm_tiny\n  - _self_\ntask: language_model\n"
    )
    assert load_config([]).train.label_smoothing == 0.1
    assert load_config([f"experiment={own}"]).train.label_smoothing == 0.0
    assert load_config([f"experiment={own}", "train.label_smoothing=0.1"]).train.label_smoothing == 0.1
