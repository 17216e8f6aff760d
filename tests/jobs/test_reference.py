"""The reference of settings: made from the schema, complete, and shown by help and shell completion."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transloom.jobs.__main__ import main
from transloom.jobs.cli import print_topic
from transloom.jobs.command_table import COMMANDS
from transloom.jobs.config.compose import _keys
from transloom.jobs.config.reference import FILE, all_settings, read_by, readers
from transloom.jobs.config.write_reference import PAGE, as_json, page, schema_settings
from transloom.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_that_of_the_schema():
    """Otherwise: python -m transloom.jobs.config.write_reference"""
    settings = schema_settings()
    assert FILE.read_text(encoding="utf-8") == as_json(settings)
    assert PAGE.read_text(encoding="utf-8") == page(settings)


def test_no_setting_lacks_a_line():
    assert {setting.key for setting in all_settings()} == set(_keys())
    assert all(setting.line and setting.default is not None for setting in all_settings())


def test_help_of_a_setting_has_its_line_default_choices_and_readers(capsys):
    assert main(["help", "model.norm"]) == 0
    told = capsys.readouterr().out
    transformer, decoder = told.split("model.architecture=decoder_only")
    assert "default  post" in transformer and "default  pre" in decoder and "choices  post, pre" in decoder
    assert "read by  run, train, evaluate, plan, bench, race, sweep, submit, resume\n" in told


def test_help_of_a_section_lists_its_settings(capsys):
    assert main(["help", "train.lora"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if "=" in line] == [
        "train.lora.rank=0",
        "train.lora.alpha=16.0",
        "train.lora.layers=all",
    ]


@pytest.mark.parametrize(
    ("topic", "nearest"),
    [("model.nrom", "model.norm"), ("max_steps", "train.max_steps"), ("evaluat", "evaluate"), ("corpsu", "corpus")],
)
def test_a_misspelt_name_suggests_the_nearest(topic, nearest):
    with pytest.raises(UserError, match=rf"^{topic}: .* Did you mean {nearest}\?"):
        print_topic(topic)


def test_a_word_that_is_no_setting_is_explained_by_the_commands_that_take_it(capsys):
    print_topic("on")
    assert capsys.readouterr().out.count("transloom evaluate … on=") == 3


def test_a_jobs_own_section_is_read_by_that_job_alone():
    assert readers("race.lengths") == ["race"]
    assert readers("sweep.trials") == ["sweep", "submit", "resume"]
    assert "translate" in readers("decode.beam") and "translate" not in readers("train.max_steps")
    assert read_by("translate") == ["decode", "cluster", "output_dir"]
    assert {"clean", "corpus", "tokenizer"} <= set(read_by("prepare")) and "train" not in read_by("prepare")


@pytest.mark.parametrize("job", [name for name, command in COMMANDS.items() if command.has_settings])
def test_help_of_a_job_names_what_it_reads(job, capsys):
    assert main(["help", job]) == 0
    assert f"Reads the settings of: {', '.join(read_by(job))}; " in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_takes_less_than_a_second_and_no_torch(shell):
    code = f"import sys; from transloom.jobs.__main__ import main; main(['completion', '{shell}']); "
    code += "sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):  # the least of them, for others compute meanwhile
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0
    assert "train.max_steps=" in done.stdout and "@" not in done.stdout.replace("[@]", "")
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("transloom tra", ["train", "translate"]),
        ("transloom train train.max_st", ["train.max_steps="]),
        ("transloom train model.norm=", ["post", "pre"]),
        ("transloom train decode=gre", ["greedy"]),
        ("transloom help cluster.hang", ["cluster.hang_minutes"]),
        ("transloom evaluate fi", ["first"]),
        ("transloom train resume=fi", ["first"]),
    ],
)
def test_bash_completes(tmp_path, capsys, line, expected):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    run = tmp_path / "outputs" / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    asked = (
        f"{script}\ncompopt() {{ :; }}\nCOMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({line})\n"
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _transloom; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(
        ["bash"], input=asked, text=True, capture_output=True, check=True, cwd=tmp_path, env=os.environ
    )
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_versions_are_printed_without_imports():
    code = "import sys; from transloom.jobs.__main__ import main; main(['--version']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [row.split()[0] for row in done.stdout.splitlines()] == ["transloom", "python", "torch", "ray", "deepspeed"]
    assert all(len(row.split()) == 2 for row in done.stdout.splitlines())
