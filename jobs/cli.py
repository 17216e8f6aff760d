"""What the command line of every job shares: the list of jobs, help, `--cfg job`, and the configuration."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.config.groups import groups
from pipeline.errors import UserError

if TYPE_CHECKING:
    from jobs.config.schema import Config

# The job `name` is the module jobs/commands/<name>.py with main(argv) -> exit code, imported only when it is called.
JOBS = {
    "run": "the whole pipeline: prepare, train, evaluate; finished stages are skipped",
    "prepare": "clean a corpus, train its tokenizer, write the shards",
    "train": "prepare what is missing, then train; resume=<run> goes on with a run",
    "evaluate": "average the last checkpoints of a run, translate the test set, score it",
    "translate": "translate text with a trained model: lines in, lines out",
    "export": "write a trained model in the format of CTranslate2 or Hugging Face",
    "plan": "what a training takes in memory, time and money, before anything is started",
    "bench": "measure training and decoding against what is usually used, on this machine",
    "attend": "translate a sentence and draw the model's attention",
    "race": "train several models on one corpus for equal time, and compare them",
    "compare": "say which of several runs or translations is better, whether by chance, and what differs",
    "sweep": "train many times with other settings, to find the best; resume=<sweep> goes on with one",
    "sync": "upload to MLflow what is left of runs that ended while it was away",
    "ui": "serve MLflow's pages on the runs, on this machine only",
    "cluster": "start a Ray cluster on this machine, end it, or say how it is",
    "submit": "hand a job to a Ray cluster, and follow its log",
    "jobs": "list the jobs of a cluster",
    "logs": "show the log of a job on a cluster",
    "stop": "stop a job on a cluster, which saves a checkpoint first",
    "resume": "submit a job that ended again, to go on from its newest checkpoint",
    "doctor": "what this machine, or a cluster, has and lacks, and what to do about it",
}

WITHOUT_SETTINGS = ("cluster", "jobs", "logs", "stop")  # their help need not list the configuration

USUAL_OVERRIDES = {
    "corpus.path=<folder>": "read the corpus' text files from this folder, not from the hub",
    "cluster.num_workers=2": "share the work out over two workers",
    "precision=fp32": "no mixed precision; auto, the default, is bf16 where the device has it",
    "engine=torch": "plain PyTorch; zero0 to zero3 for DeepSpeed's stages",
    "evaluate.tokenize=char": "count BLEU by this tokenizer of sacreBLEU, not by that of the target language",
    "train.max_steps=1000": "end the training after this many steps",
    "tracking.uri=http://host:5000": "report to an MLflow server",
    "name=<name>": "the run's name and folder",
    "resume=<run>": "go on with a run: its name or its folder",
    "output_dir=<folder>": "where everything is written and found",
    "storage=s3://<bucket>/<folder>": "copy what is finished there, fetch what is missing here",
}

# What a job reads and others do not; its help has them first.
OWN_OVERRIDES = {
    "race": {
        "race.contenders={…}": "the models by name, each with the words that make it, as in an example below",
        "train.max_minutes=30": "how long each of them is trained",
        "race.lengths=[8,32,128]": "sentence lengths, in tokens, at which training speed is measured",
    },
    "sweep": {
        "sweep.space={…}": "what varies, as in an example below; sweep=<option> has one ready",
        "sweep.trials=30": "how many trainings in all; a grid has no more than its points",
        "sweep.at_once=2": "how many of them side by side; 0: as many as there is room for",
        "sweep.minutes=60": "begin none after so many minutes; 0: no limit",
        "sweep.stop=asha": "end the poor ones early: asha, median or none",
        "sweep.seeds=3": "train the best with so many seeds, to see how far chance goes",
        "sweep.warm_start=[<sweep>]": "learn from earlier sweeps of the same parameters",
    },
}

# Jobs that look at a part of the configuration: the groups and usual settings that help shows. Others read it all.
READS = {
    "prepare": (
        *("corpus", "tokenizer", "cluster", "experiment"),
        *("corpus.path", "cluster.num_workers", "output_dir", "storage"),
    ),
    "translate": ("decode", "output_dir"),
    "export": ("output_dir",),
    "bench": (
        *("corpus", "tokenizer", "model", "optimizer", "schedule", "precision", "cluster", "tracking", "decode"),
        *("experiment", "corpus.path", "tracking.uri", "name", "output_dir"),
    ),
    "attend": ("decode", "tracking", "tracking.uri", "output_dir"),
    "compare": ("tracking", "evaluate.tokenize", "tracking.uri", "name", "output_dir"),
    "sync": ("tracking", "tracking.uri", "output_dir"),
    "ui": ("tracking", "tracking.uri", "output_dir"),
}

# Of these, those that look at nothing else, so that any other setting is a mistake.
NOTHING_ELSE = ("translate", "export", "attend", "compare", "sync", "ui")

EXAMPLES = [  # of the jobs that have none of their own
    "experiment=multi30k_en_de corpus.path=../multi30k cluster.num_workers=2",
    "corpus=text corpus.train.source=my.en corpus.train.target=my.de",
    "experiment=paper_base_en_de cluster=gpu cluster.num_workers=8",
]

# Jobs with more, or other, words than settings: what usage says, and examples.
ARGUMENTS = {
    "translate": "<run or model folder> [file] ",
    "bench": "[run or model folder] [part=train|decode] [rounds=5] [steps=10] [sentences=500] ",
    "export": "<run or model folder> <output folder> format=ctranslate2|huggingface ",
    "plan": "[--calibrate] [price.h100=2.5] ",
    "attend": '<run or model folder> "A sentence." ["Its translation."] [log=true] ',
    "compare": "<run or file> <run or file> … [references=<file> source=<file> train=<file>] "
    "[target_language=<code>] [reach=<BLEU>] "
    "[query=<filter of MLflow>] [comet=<checkpoint> comet_command=<comet-score>] ",
    "cluster": "up [nodes=1] [cpus=<of a node>] | down | status",
    "sync": "[<run or sweep> …] ",
    "submit": "run|prepare|train|evaluate|sweep [to=<cluster> | to=kubernetes --dry-run image=<image>] ",
    "jobs": "[to=<cluster>]",
    "logs": "<job> [-f] [to=<cluster>]",
    "stop": "<job> [to=<cluster>]",
    "resume": "<job> [to=<cluster>] ",
    "doctor": "[to=<cluster>] ",
}
OWN_EXAMPLES = {
    "translate": ["my-run < text.en > text.de", "outputs/runs/my-run/model text.en decode=greedy > text.de"],
    "export": ["my-run my-run-ct2 format=ctranslate2 quantization=int8", "my-run my-run-hf format=huggingface"],
    "bench": ["", "corpus=multi30k_en_de corpus.path=../multi30k", "my-run part=decode"],
    "plan": [
        "experiment=paper_base_en_de",
        "experiment=multi30k_en_de --calibrate",
        "experiment=paper_big_en_de cluster.num_workers=4 price.h100=2.5",
    ],
    "attend": [
        'my-run "A small dog runs."',
        'outputs/runs/my-run/model "A small dog runs." "Ein kleiner Hund rennt."',
    ],
    "race": [
        "experiment=attention_vs_recurrence corpus.path=../multi30k",
        "experiment=attention_vs_recurrence train.max_minutes=30",
        """train.max_minutes=10 'race.contenders={a: ["model=small"], b: ["model=tiny"]}'""",
    ],
    "compare": [
        "first second",
        "first second third reach=30 name=widths",
        "first theirs.de references=test.de",
        "mine.zh theirs.zh references=test.zh target_language=zh",
        "mine.de theirs.de references=test.de source=test.en train=train.de tracking=off",
        "first second comet=wmt22-comet-da/checkpoints/model.ckpt comet_command=comet/bin/comet-score",
        """first query='metrics."test/bleu" > 30 and params.`model.architecture` = "lstm"'""",
    ],
    "sweep": [
        "experiment=multi30k_sweep corpus.path=../multi30k",
        "experiment=multi30k_en_de sweep=tpe_asha sweep.trials=30 sweep.seeds=3",
        "sweep.sampler=random 'sweep.space={model.dropout: {low: 0.0, high: 0.4}}'",
        "resume=my-sweep sweep.trials=50",
    ],
    "sync": ["", "my-run", "my-run my-sweep tracking.uri=http://mlflow:5000"],
    "ui": ["", "output_dir=/data/outputs"],
    "cluster": ["up", "up nodes=2 cpus=1", "status", "down"],
    "submit": [
        "run",
        "run to=lab experiment=multi30k_en_de cluster.num_workers=4",
        "sweep to=lab experiment=multi30k_sweep sweep.trials=30",
    ],
    "jobs": ["", "to=lab"],
    "logs": ["first-3fa2c1", "first-3fa2c1 -f to=lab"],
    "stop": ["first-3fa2c1"],
    "doctor": ["", "output_dir=/data/outputs tracking.uri=http://mlflow:5000", "to=lab"],
    "resume": ["first-3fa2c1", "first-3fa2c1 train.max_steps=20000 cluster.num_workers=2"],
}


def sort_words(argv: Sequence[str], own: Sequence[str] = ()) -> tuple[list[str], dict[str, str], list[str]]:
    """A job's plain words, such as a file or a sentence; those of its settings that are not in the configuration, with
    the keys `own`; and all others: `key=value`, options and what follows --cfg."""
    words: list[str] = []
    values: dict[str, str] = {}
    settings: list[str] = []
    for i, word in enumerate(argv):
        key, equals, value = word.partition("=")
        if equals and key in own:
            values[key] = os.path.expanduser(value)  # a shell expands ~ at the beginning of a word only
        elif (_is_setting(word) and not _is_file(word)) or argv[i - 1 : i] == ["--cfg"]:
            settings.append(word)
        else:
            words.append(os.path.expanduser(word))
    return words, values, settings


def _is_file(word: str) -> bool:
    """A file may have an equals sign in its name."""
    return not word.startswith("-") and os.path.exists(word) and word.partition("=")[0] not in groups()


def _is_setting(word: str) -> bool:
    """Whether a word is a setting or an option. One with a space in it may be a sentence: "x=1 holds", "-No, he said";
    it is a setting where it begins with a part of the configuration."""
    key = re.match(r"[+~]*(\w+)[\w./@]*=", word)
    if " " not in word:
        return bool(key or re.match(r"--?[a-zA-Z]", word))
    if not key:
        return False
    from jobs.config.schema import Config  # imports torch, which such a job needs anyway

    return key[1] in [*groups(), *(field.name for field in dataclasses.fields(Config))]


def configuration(job: str, argv: Sequence[str], are_changes: bool = False) -> "Config":
    """The configuration that a job's words make, or with `resolved=<file>` the one that was resolved elsewhere. Answers
    `--cfg job` itself, and then ends the command.

    Args:
        are_changes: see `load_config`.
    Raises:
        UserError: if the words are refused, or mean nothing to this job.
        SystemExit: 0, after the configuration was printed.
    """
    words = list(argv)
    show = "--cfg" in words
    if show:
        at = words.index("--cfg")
        if words[at + 1 : at + 2] != ["job"]:
            raise UserError("--cfg: the only thing to show is the job's configuration: --cfg job")
        del words[at : at + 2]

    # They import torch, which takes seconds: not for help.
    from jobs.config.compose import load_config, read_config, to_yaml, with_absolute_paths
    from jobs.runs.workspace import only_resumed, resumed

    if resolved := [word.partition("=")[2] for word in words if word.startswith("resolved=")]:
        if len(words) > 1:
            raise UserError("resolved=: the file has every setting; no other word goes with it")
        config = only_resumed(read_config(Path(resolved[0])))
    else:
        _refuse_meaningless(job, words)
        config = with_absolute_paths(load_config(words, re.findall(r"([\w.]+)=", ARGUMENTS.get(job, "")), are_changes))
        if config.resume:
            config = resumed(config, words)
    if show:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _refuse_meaningless(job: str, words: Sequence[str]) -> None:
    """Refuses a setting that such a job would take and not look at. A word that is none is left to what comes next."""
    if job not in NOTHING_ELSE or any(word.startswith("resume=") for word in words):
        return  # the settings of a run, which says itself what goes with them
    from jobs.config.schema import Config

    reads = list(dict.fromkeys(name.partition(".")[0] for name in READS[job]))
    known = {*groups(), *(field.name for field in dataclasses.fields(Config))}
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        section = re.split(r"\W", key)[0]
        if section in known and section not in (*reads, "experiment"):  # which may set what the job reads
            raise UserError(f"{key}: means nothing to {job}; of all settings it reads {', '.join(reads)}")


def print_jobs() -> None:
    console = _console()
    console.print("usage: transloom <job> [key=value | group=option] …\n")
    console.print(_columns(JOBS))
    console.print("\nStart with: transloom run            More about a job: transloom <job> --help")


def print_help(job: str) -> None:
    console = _console()
    settings = "" if job in WITHOUT_SETTINGS else "[key=value | group=option] …"
    console.print(f"usage: transloom {job} {ARGUMENTS.get(job, '')}{settings}\n", soft_wrap=True)
    console.print(f"{JOBS[job][0].upper()}{JOBS[job][1:]}.\n", soft_wrap=True)
    if settings:
        reads = READS.get(job, (*groups(), *(word.partition("=")[0] for word in USUAL_OVERRIDES)))
        if shown := {name: _few(options) for name, options in groups().items() if name in reads}:
            console.print("Groups: group=option takes a file of conf/<group>/; experiment= sets several at once.")
            console.print(_columns(shown))
            console.print()
        usual = OWN_OVERRIDES.get(job, {}) | {
            word: text for word, text in USUAL_OVERRIDES.items() if word.partition("=")[0] in reads
        }
        console.print("Usual settings:")
        console.print(_columns(usual))
        console.print(
            "\n--cfg job prints all settings as they would be used, and their names, and does nothing else.\n"
        )
    console.print("Examples:")
    for words in OWN_EXAMPLES.get(job, EXAMPLES):
        console.print(f"  transloom {job} {words}", soft_wrap=True)


def _few(options: list[str]) -> str:
    """The options in a line; of those in folders of their own only how many there are."""
    folders = Counter(option.rpartition("/")[0] for option in options if "/" in option)
    plain = [option for option in options if "/" not in option]
    return " ".join([*plain, *(f"{folder}/… ({count})" for folder, count in folders.items())])


def _columns(rows: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"  {name}", text)
    return table


def _console() -> Console:
    return Console(markup=False, highlight=False, emoji=False)
