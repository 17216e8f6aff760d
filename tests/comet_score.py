"""A stand-in for unbabel-comet's command, with its options, its reading of files, its bars and its JSON; only the model
is another: words of the reference that are said, and a little for each word of the source."""

import sys
import textwrap
from pathlib import Path

SCRIPT = """
import argparse, json, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("-s", "-r", "--model", "--to_json"):
    parser.add_argument(option)
parser.add_argument("-t", nargs="+")
parser.add_argument("--only_system", action="store_true")
said = parser.parse_args()
seen = {"words": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}
Path(__file__).with_name("seen.json").write_text(json.dumps(seen))
behaviour = Path(said.model).read_text()
if behaviour == "fails":
    print("http://somebody:password@proxy:3128 is no good", "Predicting: 0it", sep="\\r", file=sys.stderr)
    sys.exit("OSError: Can't load tokenizer, see https://huggingface.co/models")
if behaviour == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "hangs":
    time.sleep(600)

def lines(file):
    with open(file, encoding="utf-8") as opened:
        return [line.strip() for line in opened.readlines()]

def score(source, said, meant):
    words = set(meant.split())
    return len(words & set(said.split())) / max(1, len(words)) + 0.001 * len(source.split())

sources, references, found = lines(said.s), lines(said.r), {}
for file in said.t:
    scored = zip(sources, lines(file), references)
    found[file] = [{"src": s, "mt": t, "ref": r, "COMET": score(s, t, r)} for s, t, r in scored]
    print("Predicting DataLoader 0: 100%|##| 2/2 [00:00<00:00,  9.00it/s]", file=sys.stderr)
    print(f"{file}\\tscore: {sum(one['COMET'] for one in found[file]) / len(found[file]):.4f}")
if behaviour == "is no number":
    found[said.t[-1]][1]["COMET"] = float("nan")
if behaviour == "loses a sentence":
    found[said.t[-1]].pop()
if behaviour == "writes something else":
    found = {"scores": [1, 2, 3]}
with open(said.to_json, "w", encoding="utf-8") as file:
    json.dump(found, file, ensure_ascii=False, indent=4)
"""


def make_comet(folder: Path, behaviour: str = "works") -> tuple[Path, Path]:
    """A checkpoint, and the command in an environment of its own; the command writes seen.json beside itself."""
    command = folder / "environment" / "bin" / "comet-score"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!{sys.executable}\n{textwrap.dedent(SCRIPT)}", encoding="utf-8")
    command.chmod(0o755)
    (folder / "environment/lib/python3.11/site-packages/unbabel_comet-2.2.7.dist-info").mkdir(parents=True)
    checkpoint = folder / "model" / "checkpoints" / "model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text(behaviour, encoding="utf-8")
    (folder / "model" / "hparams.yaml").write_text("class_identifier: regression_metric\n", encoding="utf-8")
    return checkpoint, command


def expected(sources: list[str], said: list[str], meant: list[str]) -> list[float]:
    """What it gives to each sentence."""
    return [
        len(set(r.split()) & set(t.split())) / max(1, len(set(r.split()))) + 0.001 * len(s.split())
        for s, t, r in zip(sources, said, meant, strict=True)
    ]
