"""What `transloom` lists: a record for each command, which is jobs/commands/<name>.py with main(argv) -> exit code.

Help shows these records and imports nothing heavy, so they do not stand in the commands' own modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

EXAMPLES = (  # of the commands that have none of their own
    "experiment=multi30k_en_de corpus.path=../multi30k cluster.num_workers=2",
    "corpus=text corpus.train.source=my.en corpus.train.target=my.de",
    "experiment=paper_base_en_de cluster=gpu cluster.num_workers=8",
)


@dataclass(frozen=True)
class Command:
    """A command as its help tells of it.

    Attributes:
        summary: a line without a capital and a full stop.
        arguments: what usage says before the settings.
        reads: the groups, sections and settings that it looks at; None: all of them, but for the sections race and
            sweep, which are of the jobs of that name.
        refuses_others: of the settings of others each is a mistake.
        own_settings: those that other commands do not look at; its help has them first.
        own_words: key=value words that are in no configuration, beside those in `arguments`.
        has_settings: False: its help need not list the configuration.
        examples: words after the command's name.
    """

    summary: str
    arguments: str = ""
    reads: tuple[str, ...] | None = None
    refuses_others: bool = False
    own_settings: Mapping[str, str] = field(default_factory=dict)
    own_words: Mapping[str, str] = field(default_factory=dict)
    has_settings: bool = True
    examples: tuple[str, ...] = EXAMPLES


USUAL_SETTINGS = {  # of the commands that read them
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


COMMANDS = {
    "run": Command(
        "the whole pipeline: prepare, train, evaluate; finished stages are skipped",
    ),
    "prepare": Command(
        "clean a corpus, train its tokenizer, write the shards",
        reads=(
            *("corpus", "tokenizer", "cluster", "experiment", "task", "clean", "seed", "model.max_positions"),
            *("corpus.path", "cluster.num_workers", "batch.micro_tokens", "output_dir", "storage", "resume"),
        ),
    ),
    "corpus": Command(
        "clean a corpus of sentence pairs and show what it is like, before anything is trained",
        reads=(
            *("corpus", "cluster", "experiment"),
            *("corpus.path", "cluster.num_workers", "output_dir"),
        ),
        examples=(
            "corpus=multi30k_en_de corpus.path=../multi30k",
            "corpus=text corpus.train.source=my.en corpus.train.target=my.de clean.drop_duplicates=true",
            "corpus=sources 'corpus.train.sources=[{name: memory, files: my.tmx}]' clean.min_script=0.5",
        ),
    ),
    "train": Command(
        "prepare what is missing, then train; resume=<run> goes on with a run",
    ),
    "evaluate": Command(
        "average a run's snapshots, score the model on validation and test; with on= on any test set",
        arguments="[<run or model folder>] [on=<test set>]",
        own_words={
            "on=<source>,<reference>[,<reference>…]": "translate and score this test set alone: files with a line for "
            "a line, of one or several translators",
            "on=wmt24": "the same of a test set of sacreBLEU's, for the model's languages; downloaded once",
            "on=<run>": "the same of that run's test set",
        },
        examples=(
            "first",
            "first decode=greedy",
            "resume=first",
            EXAMPLES[0],
            "first on=news.en,news.de",
            "first on=wmt24 decode=beam4",
        ),
    ),
    "translate": Command(
        "translate with a trained model: lines, a column of a table, XLIFF or TMX",
        arguments="<run or model folder>[+…] [file]",
        reads=("decode", "cluster", "output_dir"),
        refuses_others=True,
        own_words={
            "output=<file>": "write there, whole or not at all; by default to standard output",
            "workers=4": "share a file's lines out over a Ray cluster, so many pieces at once; the same command goes "
            "on with a translation that was stopped",
            "format=jsonl": "an object a line: source, hypotheses with text and scores; text by default",
            "n_best=5": "that many hypotheses of the search, with format=jsonl",
            "temperature=0.8": "draw translations in place of searching; so do top_k=, top_p= and samples=",
            "top_k=50": "draw from so many of the likeliest tokens only",
            "top_p=0.95": "draw from the fewest tokens that together are so probable only",
            "samples=5": "drawn translations of a line, with format=jsonl",
            "seed=1": "another one draws other translations; 0 by default",
            "prefix='Sehr geehrte'": "every translation begins with these words",
            "terms=<file>": "source term, tab, target term a line: the translation of what has the one has the other",
            "align=true": "which word is of which, from 0, as in 0-0 1-2: behind a tab, or in the object",
            "split=sentences": "translate sentence by sentence; long, the default: only lines that are longer than the "
            "model reads or was trained on; never: the former are cut",
            "column=2": "translate this column of a tab-separated table, by number or by name in its first line; the "
            "translation becomes the last column",
            "prefix_column=3": "the column that has what the line's translation begins with",
            "source_language=en": "of a TMX or XLIFF file; by default the model's, and likewise target_language=",
        },
        examples=(
            "my-run < text.en > text.de",
            "outputs/runs/my-run/model text.en decode=greedy > text.de",
            "first+second text.en n_best=5 align=true format=jsonl output=text.jsonl",
            "my-run manual.xlf terms=terms.tsv output=manual.de.xlf",
            "my-run monolingual.en.zst temperature=1 output=synthetic.de workers=8 cluster.address=auto",
        ),
    ),
    "generate": Command(
        "continue texts with a language model",
        arguments='<run, model folder or Hugging Face folder> ["A prompt" …] [prompts=<file>] [to=<file>]',
        reads=("output_dir",),
        refuses_others=True,
        own_words={
            "prompts=<file>": 'a prompt a line, or JSON lines with "prompt", or the fields of the model\'s template',
            "to=<file>": "write JSON lines there: a line a prompt, with all of its samples",
            "samples=5": "of each prompt; 1 by default",
            "max_new_tokens=256": "after which a sample ends",
            "temperature=0.8": "below 1 the likelier tokens are drawn more often; 0 always takes the likeliest",
            "top_k=50": "draw from so many of the likeliest tokens only; 0: all",
            "top_p=0.95": "draw from the fewest tokens that together are so probable only; 1: all",
            "seed=1": "another one draws other samples; 0 by default",
            "stop='[\"\\n\\n\"]'": "end before these texts: a JSON list, or one text",
            "batch_size=32": "samples that are made side by side",
        },
        examples=(
            'my-run "ROMEO:" temperature=0.8 top_p=0.95 seed=1',
            'my-run "def f(x):" samples=5 max_new_tokens=60 stop=\'["\\n\\n"]\'',
            "my-run prompts=prompts.txt samples=3 to=samples.jsonl",
            '~/models/gpt2 "The meaning of life is"',
        ),
    ),
    "classify": Command(
        "label texts with a classifier: lines in, a label and its probability a line out",
        arguments="<run or model folder> [file] [format=tsv|jsonl]",
        reads=("output_dir",),
        refuses_others=True,
        own_words={
            "format=jsonl": 'JSON lines with "label", "probability" and "probabilities" of all labels; tsv by default: '
            "label, tab, probability",
        },
        examples=("my-run < texts.txt", "my-run texts.txt format=jsonl > labels.jsonl"),
    ),
    "score": Command(
        "how likely a language model finds texts: accuracy at choices, bits per byte of documents",
        arguments="<run, model folder or Hugging Face folder> <file> [results=<file>]",
        reads=("output_dir",),
        refuses_others=True,
        own_words={
            "results=<file>": "write JSON lines there, one for each item or document",
            "shots=5": "solved examples before each item; 0 by default",
            "examples=<file>": "where these come from; by default the other items of the file",
            "template='{context} {choice}'": "how an item is written; as JSON: '\"Q: {context}\\nA:{choice}\"'",
            "separator='\"\\n\"'": "between examples; by default a blank line",
            "seed=1": "another one draws other examples; 0 by default",
            "unit=line": "what of a text file is a document: file (default), line or paragraph",
            "stride=256": "tokens that each window of a long document adds; by default half of the context",
            "batch_tokens=4096": "tokens that are read side by side",
        },
        examples=(
            "my-run choices.jsonl",
            "my-run choices.jsonl shots=5 examples=train.jsonl template='{context} {choice}' results=scores.jsonl",
            "my-run book.txt stride=64",
            "~/models/gpt2 articles.jsonl results=bits.jsonl",
        ),
    ),
    "few_shot": Command(
        "a fine-tuned model beside the one that it began with, with solved examples in its prompts",
        arguments="<run of task=prompt_response> [shots=0,1,4] [seed=0]",
        reads=("tracking", "tracking.uri", "output_dir"),
        refuses_others=True,
        own_words={
            "shots=0,1,4": "numbers of solved examples of train in front of each prompt, a row of the table each",
            "seed=1": "another one draws other examples; 0 by default",
        },
        examples=("tuned", "tuned shots=0,2,8"),
    ),
    "export": Command(
        "write a trained model in the format of CTranslate2 or Hugging Face",
        arguments="<run or model folder> <output folder> format=ctranslate2|huggingface [quantization=int8]",
        reads=("output_dir",),
        refuses_others=True,
        examples=("my-run my-run-ct2 format=ctranslate2 quantization=int8", "my-run my-run-hf format=huggingface"),
    ),
    "plan": Command(
        "what a training takes in memory, time and money, before anything is started",
        arguments="[--calibrate] [price.h100=2.5] [link.h100=360] [network.h100=12.5]",
        reads=(
            *("corpus", "tokenizer", "model", "optimizer", "precision", "engine", "cluster", "experiment", "task"),
            *("clean", "batch", "train", "seed", "corpus.path", "cluster.num_workers", "train.max_steps", "name"),
            *("resume", "output_dir"),
        ),
        own_words={
            "price.h100=2.5": "US dollars for an hour of one device: of h200, h100, a100 or cpu",
            "link.h100=360": "GB/s from a device to its neighbour in a machine",
            "network.h100=12.5": "GB/s of each device between machines",
        },
        examples=(
            "experiment=paper_base_en_de",
            "experiment=multi30k_en_de --calibrate",
            "experiment=paper_big_en_de cluster.num_workers=4 price.h100=2.5",
            "experiment=paper_big_en_de cluster.num_workers=8 network.h100=12.5",
        ),
    ),
    "bench": Command(
        "measure training and decoding against what is usually used, on this machine",
        arguments="[run or model folder] [part=train|decode|length] [rounds=5] [steps=10] [sentences=500] "
        "[lengths=1024,2048]",
        reads=(
            *("corpus", "tokenizer", "model", "optimizer", "schedule", "precision", "cluster", "tracking", "decode"),
            *("experiment", "corpus.path", "tracking.uri", "name", "output_dir", "storage", "task", "clean", "batch"),
            *("seed", "evaluate", "evaluate.tokenize", "train.label_smoothing", "train.max_steps"),
        ),
        examples=(
            "",
            "corpus=multi30k_en_de corpus.path=../multi30k",
            "experiment=language_model/demo",
            "my-run part=decode",
            "part=length lengths=1024,2048,4096,8192 rounds=3",
        ),
    ),
    "attend": Command(
        "draw a model's attention, and see what its heads, gradients and positions do",
        arguments='<run or model folder> "A sentence." ["Its translation."] | <run> … part=<part> [log=true]',
        reads=("decode", "tracking", "tracking.uri", "output_dir"),
        refuses_others=True,
        examples=(
            'my-run "A small dog runs."',
            'outputs/runs/my-run/model "A small dog runs." "Ein kleiner Hund rennt."',
            'my-language-model "def main(argv):"',
            "my-run part=heads log=true",
            "my-run part=prune stack=encoder points=10",
            "my-run part=prune without=2.1,2.3",
            "lstm-run transformer-run part=gradient examples=50",
            "sinusoidal-run rotary-run alibi-run part=positions",
        ),
        own_words={
            "part=heads": "how much of each head's attention goes to the previous token, the same one, punctuation, … "
            "over a run's own corpus; a picture, a table and JSON",
            "part=prune": "heads taken out, the least needed first: scores against the heads that are left",
            "part=gradient": "the gradient of the loss at the last position, by distance; of several runs",
            "part=positions": "the loss at 1, 2 and 4 times the trained length; of several runs",
            "examples=200": "of the split are looked at, evenly spread",
            "split=validation": "or train or test",
            "points=8": "of part=prune: so many numbers of heads are scored on the whole validation set",
            "stack=encoder": "of part=prune: take heads out of this stack alone: encoder, decoder or cross",
            "without=2.1,2.3": "of part=prune: take out these heads at once, by layer and number",
            "log=true": "the files go to the run's page in MLflow, too",
        },
    ),
    "race": Command(
        "train several models on one corpus for equal time, and compare them",
        own_settings={
            "race.contenders={…}": "the models by name, each with the words that make it, as in an example below",
            "train.max_minutes=30": "how long each of them is trained",
            "race.lengths=[8,32,128]": "sentence lengths, in tokens, at which training speed is measured",
        },
        examples=(
            "experiment=attention_vs_recurrence corpus.path=../multi30k",
            "experiment=attention_vs_recurrence train.max_minutes=30",
            """train.max_minutes=10 'race.contenders={a: ["model=small"], b: ["model=tiny"]}'""",
        ),
    ),
    "compare": Command(
        "say which of several runs or translations is better, whether by chance, and what differs",
        arguments="<run or file> <run or file> … [references=<file> source=<file> train=<file>] "
        "[target_language=<code>] [reach=<score>] "
        "[query=<filter of MLflow>] [comet=<checkpoint> comet_command=<comet-score>] "
        "[tests=<run or sources:references>,…]",
        reads=("tracking", "evaluate.tokenize", "tracking.uri", "name", "output_dir"),
        refuses_others=True,
        examples=(
            "first second",
            "first second third reach=30 name=widths",
            "first theirs.de references=test.de",
            "mine.zh theirs.zh references=test.zh target_language=zh",
            "mine.de theirs.de references=test.de source=test.en train=train.de tracking=off",
            "first second comet=wmt22-comet-da/checkpoints/model.ckpt comet_command=comet/bin/comet-score",
            "old tuned mixed tests=old,tuned",
            """first query='metrics."test/bleu" > 30 and params.`model.architecture` = "lstm"'""",
        ),
    ),
    "sweep": Command(
        "train many times with other settings, to find the best; resume=<sweep> goes on with one",
        own_settings={
            "sweep.space={…}": "what varies, as in an example below; sweep=<option> has one ready",
            "sweep.trials=30": "how many trainings in all; a grid has no more than its points",
            "sweep.at_once=2": "how many of them side by side; 0: as many as there is room for",
            "sweep.minutes=60": "begin none after so many minutes; 0: no limit",
            "sweep.stop=asha": "end the poor ones early: asha, median or none",
            "sweep.seeds=3": "train the best with so many seeds, to see how far chance goes",
            "sweep.warm_start=[<sweep>]": "learn from earlier sweeps of the same parameters",
        },
        examples=(
            "experiment=multi30k_sweep corpus.path=../multi30k",
            "experiment=multi30k_en_de sweep=tpe_asha sweep.trials=30 sweep.seeds=3",
            "sweep.sampler=random 'sweep.space={model.dropout: {low: 0.0, high: 0.4}}'",
            "resume=my-sweep sweep.trials=50",
        ),
    ),
    "runs": Command(
        "list the runs, follow one; rename, archive or delete them",
        arguments="[<run> | rename <run> <name> | archive <run> … | unarchive <run> … | delete <run> …] "
        "[format=json] [watch=true] [archived=true] [yes=true]",
        reads=("tracking", "tracking.uri", "output_dir"),
        refuses_others=True,
        own_words={
            "format=json": "JSON in place of a table",
            "watch=true": "follow a run until it ends",
            "archived=true": "list the archived runs",
            "yes=true": "delete without asking",
            "tracking=off": "leave MLflow as it is",
        },
        examples=("", "first", "first watch=true", "rename first best", "archive old older", "delete old yes=true"),
    ),
    "sync": Command(
        "upload to MLflow what is left of runs that ended while it was away",
        arguments="[<run or sweep> …]",
        reads=("tracking", "tracking.uri", "output_dir"),
        refuses_others=True,
        examples=("", "my-run", "my-run my-sweep tracking.uri=http://mlflow:5000"),
    ),
    "ui": Command(
        "serve MLflow's pages on the runs, on this machine only",
        reads=("tracking", "tracking.uri", "output_dir"),
        refuses_others=True,
        examples=("", "output_dir=/data/outputs"),
    ),
    "cluster": Command(
        "start a Ray cluster on this machine, end it, or say how it is",
        arguments="up [nodes=1] [cpus=<of a node>] | down | status",
        has_settings=False,
        examples=("up", "up nodes=2 cpus=1", "status", "down"),
    ),
    "submit": Command(
        "hand a job to a Ray cluster, and follow its log",
        arguments="run|prepare|train|evaluate|sweep [to=<cluster> | to=kubernetes --dry-run image=<image>]",
        examples=(
            "run",
            "run to=lab experiment=multi30k_en_de cluster.num_workers=2",
            "sweep to=lab experiment=multi30k_sweep sweep.trials=30",
        ),
    ),
    "jobs": Command(
        "list the jobs of a cluster",
        arguments="[to=<cluster>]",
        has_settings=False,
        examples=("", "to=lab"),
    ),
    "logs": Command(
        "show the log of a job on a cluster",
        arguments="<job> [-f] [to=<cluster>]",
        has_settings=False,
        examples=("first-3fa2c1", "first-3fa2c1 -f to=lab"),
    ),
    "stop": Command(
        "stop a job on a cluster, which saves a checkpoint first",
        arguments="<job> [to=<cluster>]",
        has_settings=False,
        examples=("first-3fa2c1",),
    ),
    "resume": Command(
        "submit a job that ended again, to go on from its newest checkpoint",
        arguments="<job> [to=<cluster>]",
        examples=("first-3fa2c1", "first-3fa2c1 train.max_steps=20000 cluster.num_workers=2"),
    ),
    "completion": Command(
        "print what makes a shell complete jobs, settings, options and runs",
        arguments="bash|zsh",
        has_settings=False,
        examples=("bash >> ~/.bashrc", "zsh >> ~/.zshrc"),
    ),
    "doctor": Command(
        "what this machine, or a cluster, has and lacks, and what to do about it",
        arguments="[to=<cluster>]",
        reads=("cluster", "precision", "tracking", "tracking.uri", "output_dir", "storage"),
        examples=("", "output_dir=/data/outputs tracking.uri=http://mlflow:5000", "to=lab"),
    ),
}
