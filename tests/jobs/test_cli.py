"""The command line: the list of jobs, help, `--cfg job`, and what each outcome exits with."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from transloom.jobs.__main__ import main
from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.command_table import COMMANDS, EXAMPLES, USUAL_SETTINGS
from transloom.jobs.config.compose import chosen_options, load_config, read_config, to_yaml, with_absolute_paths
from transloom.jobs.config.groups import groups
from transloom.jobs.config.reference import known_names
from transloom.jobs.runs.stopping import Terminated
from transloom.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HELP = {
    "jobs --help": """
usage: transloom jobs [to=<cluster>]

List the jobs of a cluster.

Examples:
  transloom jobs
  transloom jobs to=lab
""",
    "translate --help": """
usage: transloom translate <run or model folder>[+…] [file] [key=value | group=option] …

Translate with a trained model: lines, a column of a table, XLIFF or TMX.

Its own settings:
  output=<file>          write there, whole or not at all; by default to standard output
  workers=4              share a file's lines out over a Ray cluster, so many pieces at once; the same command goes on
                         with a translation that was stopped
  format=jsonl           an object a line: source, hypotheses with text and scores; text by default
  n_best=5               that many hypotheses of the search, with format=jsonl
  temperature=0.8        draw translations in place of searching; so do top_k=, top_p= and samples=
  top_k=50               draw from so many of the likeliest tokens only
  top_p=0.95             draw from the fewest tokens that together are so probable only
  samples=5              drawn translations of a line, with format=jsonl
  seed=1                 another one draws other translations; 0 by default
  prefix='Sehr geehrte'  every translation begins with these words
  terms=<file>           source term, tab, target term a line: the translation of what has the one has the other
  align=true             which word is of which, from 0, as in 0-0 1-2: behind a tab, or in the object
  split=sentences        translate sentence by sentence; long, the default: only lines that are longer than the model
                         reads or was trained on; never: the former are cut
  column=2               translate this column of a tab-separated table, by number or by name in its first line; the
                         translation becomes the last column
  prefix_column=3        the column that has what the line's translation begins with
  source_language=en     of a TMX or XLIFF file; by default the model's, and likewise target_language=

Groups: group=option takes a file of conf/<group>/; experiment= sets several at once.
  cluster  address gpu local
  decode   beam4 beam5 greedy

Usual settings:
  output_dir=<folder>  where everything is written and found

Reads the settings of: decode, cluster, output_dir; transloom help <name> has each.
--cfg job prints all settings as they would be used, and their names, and does nothing else.

Examples:
  transloom translate my-run < text.en > text.de
  transloom translate outputs/runs/my-run/model text.en decode=greedy > text.de
  transloom translate first+second text.en n_best=5 align=true format=jsonl output=text.jsonl
  transloom translate my-run manual.xlf terms=terms.tsv output=manual.de.xlf
  transloom translate my-run monolingual.en.zst temperature=1 output=synthetic.de workers=8 cluster.address=auto
""",
    "ui --help": """
usage: transloom ui [key=value | group=option] …

Serve MLflow's pages on the runs, on this machine only.

Groups: group=option takes a file of conf/<group>/; experiment= sets several at once.
  tracking  local off server

Usual settings:
  tracking.uri=http://host:5000  report to an MLflow server
  output_dir=<folder>            where everything is written and found

Reads the settings of: tracking, output_dir; transloom help <name> has each.
--cfg job prints all settings as they would be used, and their names, and does nothing else.

Examples:
  transloom ui
  transloom ui output_dir=/data/outputs
""",
}  # by the words


@pytest.fixture
def job(monkeypatch):
    """Makes `run` do what a test says."""

    def install(action):
        monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=action))

    return install


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_no_job_lists_the_jobs_with_a_line_each(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert len(re.findall(rf"^  {name}  ", printed, re.MULTILINE)) == 1


def test_the_folder_of_commands_is_what_is_listed():
    assert {path.stem for path in (ROOT / "jobs" / "commands").glob("*.py")} == {*COMMANDS, "__init__"}


@pytest.mark.parametrize("words", HELP)
def test_help_says_what_it_said(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(words.split()) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed == HELP[words].strip("\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_usage_line(name, capsys):
    main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"{usage(name)}\n\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "trian: no such job. Did you mean train?"),
        ("zzz", "zzz: no such job. The jobs are: run, "),
        ("experiment=demo", "for example: transloom run experiment=demo"),
    ],
)
def test_an_unknown_job_names_the_nearest(word, message, capsys):
    assert main([word]) == 2
    assert message in capsys.readouterr().err


def test_the_exit_code_is_the_jobs(job):
    job(lambda argv: len(argv))
    assert main(["run", "a", "b", "c"]) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/disk/config.yaml"), "no space left for /disk/config.yaml"),
        (OSError(30, "Read-only file system", "/disk/lock"), "/disk/lock can't be written"),
        (PermissionError(13, "Permission denied", "/disk/runs"), "no permission for /disk/runs"),
        (RuntimeError("database or disk is full"), "the disk is full: no space left for "),
    ],
)
def test_a_disk_that_can_not_be_written_is_one_message_and_exit_code_2(job, capsys, error, said):
    job(lambda argv: _raise(error))
    assert main(["run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("transloom: ") and said in told and told.count("\n") == 1


def test_an_output_on_a_full_disk_is_one_message_and_exit_code_2():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "transloom.jobs", "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "output can't be written" in done.stderr


def test_a_users_error_is_one_message_and_exit_code_2(job, capsys):
    job(lambda argv: _raise(UserError("corpus.path: no such folder")))
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "transloom: corpus.path: no such folder\n"


def test_an_interrupt_says_how_to_go_on(job, capsys):
    job(lambda argv: _raise(KeyboardInterrupt()))
    assert main(["run"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_sigterm_has_its_exit_code(job, capsys):
    job(lambda argv: _raise(Terminated("the run a was stopped")))
    assert main(["run"]) == 143
    assert capsys.readouterr().err == "transloom: the run a was stopped.\n"


def test_a_bug_keeps_its_traceback(job):
    job(lambda argv: _raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["run"])


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.has_settings])
def test_help_of_a_job_without_settings_names_none(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: transloom {name} ") and "experiment" not in printed


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.has_settings])
def test_help_names_every_group_and_option_that_the_job_reads(name, capsys):
    assert main([name, "model=tiny", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: transloom {name} ")
    for group, options in groups().items():
        is_shown = re.search(rf"^  {group} +{options[0]}", printed, re.MULTILINE) is not None
        assert is_shown == (group in (COMMANDS[name].reads or groups()))
        for option in options if is_shown else ():
            assert option.rpartition("/")[0] in printed if "/" in option else option in printed


def test_help_of_a_job_that_reads_little_is_short(capsys):
    main(["ui", "--help"])
    printed = capsys.readouterr().out
    assert "tracking.uri=" in printed and "output_dir=" in printed
    assert "corpus" not in printed and "train.max_steps" not in printed
    known = {*groups(), *known_names()}
    assert all(set(command.reads or ()) <= known for command in COMMANDS.values())


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from transloom.jobs.__main__ import main; main(['run', '--help']); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.endswith("\nFalse\n")


def test_what_help_tells_is_accepted():
    for word in USUAL_SETTINGS:
        load_config([re.sub(r"<\w+>", "example", word)])
    for words in EXAMPLES:
        load_config(words.split())
    for command in COMMANDS.values():
        for word in command.own_settings:
            if "…" not in word:
                load_config([re.sub(r"<\w+>", "example", word)])


EXAMPLE_WORDS = [
    (job, words) for job, command in COMMANDS.items() for words in command.examples if command.has_settings
]


@pytest.mark.parametrize(("job", "words"), EXAMPLE_WORDS)
def test_every_example_composes_with_the_settings_that_it_names(job, words, tmp_path, monkeypatch):
    """What a job takes beside settings is known to it, and each setting has the example's value, or names a run."""
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[job]
    own = re.findall(r"([\w.]+)=", " ".join([command.arguments, *command.own_words]))
    given = [word for word in shlex.split(re.sub(r" [<>] [\w.]+", "", words)) if not word.startswith("--")]
    plain, values, settings = sort_words(given, own)
    assert not plain or command.arguments
    assert set(values) <= {*own}
    if settings:
        config = load_config(settings)
        for word in settings:
            key, _, value = word.partition("=")
            if key not in groups() and not key.endswith((".space", ".contenders", ".sources")):
                assert _value(config, key) == type(_value(config, key))(value)
            elif "/" not in value and value in groups().get(key, ()):
                assert chosen_options(settings)[key] == value


def _value(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        (["first"], "first"),
        (["first", "decode=greedy"], "first"),
        (["outputs/runs/first"], "outputs/runs/first"),
        (["outputs/runs/first/model"], "outputs/runs/first"),
        (["resume=first"], "first"),
    ],
)
def test_evaluate_takes_a_run_as_translate_does(words, resume, tmp_path, monkeypatch):
    from transloom.jobs.commands.evaluate import _with_run

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(load_config(["seed=7"])), encoding="utf-8")
    settings = _with_run(words)
    assert settings[0] == f"resume={resume}" and settings[1:] == words[1:]
    config = configuration("evaluate", settings)
    assert (config.resume, config.seed) == ("first", 7)
    with pytest.raises(UserError, match=r"^usage: transloom evaluate "):
        _with_run(["first", "second"])


def test_help_of_a_sweep_names_its_own_settings_and_that_of_a_run_does_not(capsys):
    main(["sweep", "--help"])
    said = capsys.readouterr().out
    assert all(re.search(rf"^  sweep\.{key}=", said, re.MULTILINE) for key in ("space", "trials", "at_once", "seeds"))
    main(["run", "--help"])
    assert "sweep." not in capsys.readouterr().out


@pytest.mark.parametrize("job", [name for name, command in COMMANDS.items() if command.refuses_others])
@pytest.mark.parametrize("word", ["model.d_model=64", "model=small", "train.max_steps=1", "seed=2", "storage=s3://a/b"])
def test_a_setting_that_means_nothing_to_the_job_is_refused(job, word):
    with pytest.raises(UserError) as refusal:
        configuration(job, ["output_dir=a", word])
    reads = "of all settings it reads .*output_dir"
    assert re.fullmatch(rf"{re.escape(word.partition('=')[0])}: means nothing to {job}; {reads}", str(refusal.value))


def test_what_a_job_reads_is_taken_also_through_an_experiment_or_a_run(capsys, tmp_path):
    """Hydra's experiments may set the search, and a file of the user's own the output folder."""
    assert configuration("translate", ["decode=greedy", "experiment=multi30k_en_de"]).decode.beam == 1
    assert configuration("attend", ["experiment=multi30k_en_de"]).decode.beam == 5
    assert configuration("compare", ["name=a", "tracking=off", "tracking.experiment=b"]).name == "a"
    (tmp_path / "mine.yaml").write_text("# @package _global_\noutput_dir: /data\n", encoding="utf-8")
    assert configuration("ui", [f"experiment={tmp_path}/mine.yaml"]).output_dir == "/data"
    run = tmp_path / "outputs" / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(load_config(["seed=7"])), encoding="utf-8")
    assert configuration("ui", [f"resume={run}"]).output_dir == f"{tmp_path}/outputs"
    with pytest.raises(SystemExit):
        configuration("ui", ["--cfg", "job"])
    assert "output_dir: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("job", "word", "hint"),
    [
        ("compare", "reference=a.de", "Did you mean references?"),
        ("compare", "sorce=a.en", "Did you mean source?"),
        ("export", "fromat=ctranslate2", "Did you mean format?"),
        ("run", "reference=a.de", "`--cfg job` prints all that there are."),
        ("run", "warmup=10", "Did you mean schedule.warmup_steps?"),
        ("run", "batch_size=10", "Did you mean batch.tokens?"),
    ],
)
def test_the_nearest_of_an_unknown_word_may_be_one_of_the_jobs_own(job, word, hint):
    with pytest.raises(UserError) as refusal:
        configuration(job, [word])
    assert str(refusal.value) == f"{word.partition('=')[0]}: no such setting. {hint}"


def test_cfg_job_prints_the_resolved_configuration(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        configuration("run", ["seed=7", "--cfg", "job", "experiment=multi30k_en_de"])
    assert end.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    expected = with_absolute_paths(load_config(["seed=7", "experiment=multi30k_en_de"]))
    assert read_config(tmp_path / "printed.yaml") == expected
    with pytest.raises(UserError, match="--cfg job"):
        configuration("run", ["--cfg", "hydra"])


def test_a_resolved_configuration_is_taken_as_it_is(tmp_path, monkeypatch):
    config = with_absolute_paths(load_config(["seed=7", "experiment=multi30k_en_de", "name=a"]))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert configuration("run", ["resolved=config.yaml"]) == config
    with pytest.raises(UserError, match="no other word goes with it"):
        configuration("run", ["resolved=config.yaml", "seed=8"])
    with pytest.raises(UserError, match=r"nothing.yaml: No such file"):
        configuration("run", ["resolved=nothing.yaml"])
