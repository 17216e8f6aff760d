import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from transloom.pipeline.data.clean import CleanConfig, Invalid
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.pairs import open_pairs
from transloom.pipeline.data.prepare import Prepared, prepare
from transloom.pipeline.data.tokenizer import Tokenizer, TokenizerConfig
from transloom.pipeline.errors import UserError

TOKENIZER = TokenizerConfig(vocab_size=500)
SPLITS = ("train", "validation", "test")


def sentences(count: int, seed: int) -> list[bytes]:
    chooser = random.Random(seed)
    words = ["".join(chooser.choices("abcdeäßé", k=chooser.randint(1, 6))) for _ in range(100)]
    return [" ".join(chooser.choices(words, k=chooser.randint(2, 12))).encode() for _ in range(count)]


def write_corpus(folder: Path, **replaced: list[bytes] | bytes) -> CorpusConfig:
    """A small corpus of files train.source … test.target; a keyword like train_target replaces its lines (or, as
    bytes, its whole contents)."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for seed, (split, count) in enumerate(zip(SPLITS, (200, 20, 20), strict=True)):
        for side in ("source", "target"):
            lines = replaced.get(f"{split}_{side}", sentences(count, seed=2 * seed + (side == "target")))
            contents = lines if isinstance(lines, bytes) else b"".join(line + b"\n" for line in lines)
            (folder / f"{split}.{side}").write_bytes(contents)
        splits[split] = SplitConfig(str(folder / f"{split}.source"), str(folder / f"{split}.target"))
    return CorpusConfig(kind=CorpusKind.text, name="tiny", **splits)


def hashes(folder: Path) -> dict[str, str]:
    from transloom.pipeline.files import sha256_file

    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def folders(prepared: Prepared) -> list[Path]:
    return [prepared.corpus.folder, prepared.tokenizer.folder, prepared.shards.folder]


def test_shards_hold_the_corpus(tmp_path):
    seen = []
    corpus = write_corpus(tmp_path / "in")
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out", progress=lambda *args: seen.append(args),
                       shard_pairs=64)  # fmt: skip
    tokenizer = Tokenizer.load(prepared.tokenizer.folder)
    for split in SPLITS:
        pairs = open_pairs(prepared.shards.folder, split)
        for side, lengths in zip(pairs.columns, pairs.lengths.T, strict=True):
            lines = (tmp_path / "in" / f"{split}.{side}").read_bytes().split(b"\n")[:-1]
            ids = tokenizer.encode([line.decode() for line in lines])
            assert [pairs.get(side, i).tolist() for i in range(len(pairs))] == ids
            assert lengths.tolist() == [len(sentence) for sentence in ids]
            counts = prepared.shards.manifest["counts"]["splits"][split]
            assert counts[f"{side}_tokens"] == sum(map(len, ids))
            assert counts[f"longest_{side}"] == max(map(len, ids))
            words = prepared.corpus.manifest["counts"]["splits"][split][f"{side}_words"]
            assert words == sum(len(line.split()) for line in lines)
    assert prepared.shards.manifest["counts"]["splits"]["train"]["shards"] == 4
    assert prepared.shards.manifest["counts"]["tokenizer"]["sha256"] == tokenizer.sha256
    assert [(what, done, total) for what, done, total, *_ in seen if done == total] == [
        ("clean validation", 20, 20),
        ("clean test", 20, 20),
        ("clean train", 200, 200),
        ("train tokenizer", 1, 1),
        ("tokenise", 240, 240),
    ]


def test_finished_stages_are_skipped_and_a_changed_setting_makes_new_ones_from_there_on(tmp_path):
    corpus = write_corpus(tmp_path / "in")

    def run(corpus=corpus, clean=CleanConfig(), tokenizer=TOKENIZER):  # noqa: B008
        done = prepare(corpus, clean, tokenizer, tmp_path / "out")
        return [done.corpus.skipped, done.tokenizer.skipped, done.shards.skipped]

    assert run() == [False, False, False]
    assert run() == [True, True, True]
    # The same texts at another place are the same corpus.
    assert run(corpus=write_corpus(tmp_path / "elsewhere")) == [True, True, True]
    assert run(tokenizer=TokenizerConfig(vocab_size=501)) == [True, False, False]
    # A limit that drops nothing: a new corpus folder (its manifest differs), but the same text.
    assert run(clean=CleanConfig(max_words=200)) == [False, True, True]
    assert run(clean=CleanConfig(max_words=11)) == [False, False, False]
    # Other test sentences: the tokenizer has not seen them.
    other_test = write_corpus(tmp_path / "other", test_source=sentences(20, seed=99))
    assert run(corpus=other_test) == [False, True, False]
    assert run() == [True, True, True]


def test_work_shared_out_to_processes_gives_the_same_bytes(tmp_path, monkeypatch):
    def share(*_):
        raise AssertionError("a small corpus is not worth another process")

    corpus = write_corpus(tmp_path / "in")
    alone = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "alone", map_tasks=share, shard_pairs=16)
    monkeypatch.setattr("transloom.pipeline.data.prepare.FEW_PAIRS", 0)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        shared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "shared", map_tasks=pool.map, shard_pairs=16)
    assert [folder.name for folder in folders(alone)] == [folder.name for folder in folders(shared)]
    for one, other in zip(folders(alone), folders(shared), strict=True):
        assert hashes(one) == hashes(other)


def test_unequal_sides_are_refused_before_anything_is_written(tmp_path):  # fault 18
    for split in SPLITS:
        corpus = write_corpus(tmp_path / split, **{f"{split}_target": [b"x"] * 7})
        with pytest.raises(UserError, match=rf"corpus\.{split}: .* has (200|20) .* has 7"):
            prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "out" / "corpora").iterdir()) == []


def test_lines_that_are_no_text_stop_it_or_are_dropped_and_counted(tmp_path):  # fault 19
    source, target = sentences(200, 0), sentences(200, 1)
    source[10] += b"\xff"
    target[20] = b"\0" + target[20]
    source[30], target[30] = b"\xc0", b"\0"  # both sides: one pair
    corpus = write_corpus(tmp_path / "in", train_source=source, train_target=target)
    with pytest.raises(UserError, match=r"train\.source line 11: .*UTF-8.*clean\.invalid=drop"):
        prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    assert list((tmp_path / "out" / "corpora").iterdir()) == []
    prepared = prepare(corpus, CleanConfig(invalid=Invalid.drop), TOKENIZER, tmp_path / "out")
    assert prepared.corpus.manifest["counts"]["dropped"] == {"invalid_utf8": 2, "nul": 1}
    kept = [line for i, line in enumerate(source) if i not in (10, 20, 30)]
    assert (prepared.corpus.folder / "train.source").read_bytes() == b"".join(line + b"\n" for line in kept)


def test_invalid_lines_are_never_dropped_from_a_test_set(tmp_path):  # fault 19
    target = sentences(20, 5)
    target[4] += b"\xff"
    corpus = write_corpus(tmp_path / "in", test_target=target)
    with pytest.raises(UserError, match=r"test\.target line 5: .*UTF-8"):
        prepare(corpus, CleanConfig(invalid=Invalid.drop), TOKENIZER, tmp_path / "out")


def test_one_line_is_one_line_feed_through_all_stages(tmp_path):  # fault 20
    odd = "a\u2028b \u0085c d\x0be f\x0cg h\ri \x1cj k\x1e l".encode()
    replaced = {
        f"{split}_{side}": [odd, *sentences(19, seed)]
        for split in SPLITS
        for seed, side in enumerate(("source", "target"))
    }
    clean = CleanConfig(decontaminate=False)  # the odd line stands in every split
    prepared = prepare(write_corpus(tmp_path / "in", **replaced), clean, TOKENIZER, tmp_path / "out")
    for split in SPLITS:
        assert len(open_pairs(prepared.shards.folder, split)) == 20
        for side in ("source", "target"):
            file = prepared.corpus.folder / f"{split}.{side}"
            lines = int(subprocess.run(["wc", "-l", file], capture_output=True, check=True).stdout.split()[0])
            assert lines == prepared.corpus.manifest["counts"]["splits"][split]["pairs"] == 20
    assert (prepared.corpus.folder / "test.target").read_bytes().split(b"\n")[0] == odd


def test_carriage_returns_and_a_byte_order_mark_change_no_shard(tmp_path):  # fault 21
    clean = prepare(write_corpus(tmp_path / "clean"), CleanConfig(), TOKENIZER, tmp_path / "out")
    replaced = {
        f"{split}_target": b"\xef\xbb\xbf"
        + (tmp_path / "clean" / f"{split}.target").read_bytes().replace(b"\n", b"\r\n")
        for split in SPLITS
    }
    dirty = prepare(write_corpus(tmp_path / "dirty", **replaced), CleanConfig(), TOKENIZER, tmp_path / "out")
    assert not dirty.corpus.skipped
    assert hashes(dirty.corpus.folder) == hashes(clean.corpus.folder)
    assert dirty.shards.skipped
    assert dirty.shards.folder == clean.shards.folder


def test_empty_and_huge_lines_are_dropped_from_train_and_counted(tmp_path):  # fault 22
    source, target = sentences(200, 0), sentences(200, 1)
    source[3], target[5], source[7] = b"", b" \t ", b"word " * 2_000_000
    corpus = write_corpus(tmp_path / "in", train_source=source, train_target=target)
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    assert prepared.corpus.manifest["counts"]["dropped"] == {"empty": 2, "too_long": 1}
    assert prepared.corpus.manifest["counts"]["splits"]["train"]["pairs"] == 197


def test_memory_does_not_grow_with_the_corpus(tmp_path):  # fault 22
    script = """
        import re, sys
        from pathlib import Path
        from transloom.pipeline.data.clean import CleanConfig
        from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
        from transloom.pipeline.data.prepare import prepare
        from transloom.pipeline.data.tokenizer import TokenizerConfig
        source, output = Path(sys.argv[1]), Path(sys.argv[2])
        names = ("train", "validation", "test")
        splits = {s: SplitConfig(f"{source}/{s}.source", f"{source}/{s}.target") for s in names}
        corpus = CorpusConfig(kind=CorpusKind.text, name="tiny", **splits)
        done = prepare(corpus, CleanConfig(max_bytes=100), TokenizerConfig(vocab_size=500), output)
        # Not getrusage: its peak begins with that of the process that started this one.
        peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]
        print(done.corpus.manifest["counts"]["dropped"].get("too_long", 0), peak)
    """
    peaks = {}
    for huge in (0, 6):
        source, target = ([*sentences(200, seed), *[b"x" * 10_000_000] * huge] for seed in (0, 1))
        write_corpus(tmp_path / str(huge), train_source=source, train_target=target)
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / str(huge)), str(tmp_path / "out")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        dropped, peaks[huge] = int(output[0]), int(output[1])
        assert dropped == huge
    assert peaks[6] - peaks[0] < 10_000  # KiB: less than one of the lines


def test_validation_and_test_sets_stay_as_they_came(tmp_path):
    source = [b"", b"  two  spaces ", "\u00a0\u2028".encode(), b"x " * 3000]
    target = [b"leer", b"", b"\t", b"y"]
    corpus = write_corpus(tmp_path / "in", test_source=source, test_target=target, validation_source=source,
                          validation_target=target)  # fmt: skip
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    for split in ("validation", "test"):
        for side in ("source", "target"):
            name = f"{split}.{side}"
            assert (prepared.corpus.folder / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
        pairs = open_pairs(prepared.shards.folder, split)
        assert pairs.lengths_of("source").tolist()[0] == 1  # </s> alone
        assert len(pairs) == 4
    assert prepared.corpus.manifest["counts"]["dropped"] == {}


def test_what_was_read_left_out_and_held_out_is_recorded_with_examples(tmp_path):
    source, target = sentences(200, 0), sentences(200, 1)
    source[3], target[5], target[8] = b"", b"x " * 300, b"\x1b[31mlong " + b"y " * 200
    source[8] = b"short"
    corpus = dataclasses.replace(
        write_corpus(tmp_path / "in", train_source=source, train_target=target), validation=SplitConfig(), held_out=9
    )
    seen = []
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out", progress=lambda *args: seen.append(args))
    counts = prepared.corpus.manifest["counts"]
    assert (counts["read"], counts["held_out"], counts["dropped"]) == (
        200,
        {"validation": 9},
        {"empty": 1, "length_ratio": 1, "too_long": 1},
    )
    assert counts["splits"]["train"]["pairs"] == 188
    assert ("clean train", 200, 200) in seen
    assert counts["examples"]["empty"][0].startswith("line 4, empty source:  | ")
    assert counts["examples"]["too_long"][0].startswith("line 6, 300 words: ")
    assert counts["examples"]["length_ratio"][0].startswith("line 9, 1 to 201 words: short |  [31mlong y y")
    assert len(counts["examples"]["too_long"][0]) < 200


def test_pairs_with_a_sentence_of_validation_or_test_are_left_out_unless_told(tmp_path):
    source, target = sentences(200, 0), sentences(200, 1)
    test_source, test_target = sentences(20, 4), sentences(20, 5)
    source[10], target[10] = b"  " + test_source[3] + b" ", test_target[3]  # the pair itself, but for whitespace
    source[20] = test_source[5]  # one side
    target[30] = test_target[6]
    source[40], target[50] = test_target[7], test_source[7]  # the other language's side does not count
    corpus = write_corpus(tmp_path / "in", train_source=source, train_target=target, test_source=test_source,
                          test_target=test_target)  # fmt: skip
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    counts = prepared.corpus.manifest["counts"]
    assert counts["dropped"] == {"contaminated": 3}
    assert counts["examples"]["contaminated"][0].startswith("line 11, ")
    kept = [b" ".join(line.split()) for i, line in enumerate(source) if i not in (10, 20, 30)]
    assert (prepared.corpus.folder / "train.source").read_bytes().split(b"\n")[:-1] == kept
    prepared = prepare(corpus, CleanConfig(decontaminate=False), TOKENIZER, tmp_path / "out")
    counts = prepared.corpus.manifest["counts"]
    assert (counts["dropped"], counts["contaminated"], counts["splits"]["train"]["pairs"]) == ({}, 3, 200)


def test_all_of_the_test_set_in_train_leaves_none_there(tmp_path):
    source, target = sentences(200, 0), sentences(200, 1)
    corpus = write_corpus(tmp_path / "in", train_source=source, train_target=target, test_source=source[50:150],
                          test_target=target[50:150])  # fmt: skip
    counts = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out").corpus.manifest["counts"]
    assert (counts["splits"]["train"]["pairs"], counts["contaminated"]) == (100, 100)


def test_pairs_that_validation_and_test_share_are_counted(tmp_path):
    source, target = sentences(20, 4), sentences(20, 5)
    corpus = write_corpus(tmp_path / "in", test_source=source, test_target=target, validation_source=source[:7],
                          validation_target=[*target[:5], b"anders", b"auch"])  # fmt: skip
    assert prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out").corpus.manifest["counts"][
        "test_in_validation"
    ] == 7  # fmt: skip


@pytest.mark.parametrize("decontaminate", [True, False])
def test_no_copy_of_a_held_out_sentence_stays_in_train(tmp_path, decontaminate):
    # Each source has two translations, each pair three copies.
    source = [line for line in sentences(200, 0) for _ in range(2)] * 3
    target = [b"%d " % i + line for i, line in enumerate(sentences(400, 1))] * 3
    corpus = dataclasses.replace(
        write_corpus(tmp_path / "in", train_source=source, train_target=target),
        validation=SplitConfig(), test=SplitConfig(), held_out=20,
    )  # fmt: skip
    prepared = prepare(corpus, CleanConfig(decontaminate=decontaminate), TOKENIZER, tmp_path / "out")
    lines = {
        (split, side): (prepared.corpus.folder / f"{split}.{side}").read_bytes().split(b"\n")[:-1]
        for split in SPLITS
        for side in ("source", "target")
    }
    for side in ("source", "target"):
        held_out = lines["validation", side] + lines["test", side]
        assert len(held_out) == len(set(held_out)) == 40
        assert not set(held_out) & set(lines["train", side])
    counts = prepared.corpus.manifest["counts"]
    assert counts["held_out"] == {"validation": 20, "test": 20}
    assert counts["read"] == 1200 == len(lines["train", "source"]) + 40 + counts["dropped"]["contaminated"]
    assert counts["dropped"]["contaminated"] == 40 * 2 * 3 - 40


def test_data_of_one_language_on_both_sides_are_refused_unless_that_is_meant(tmp_path):
    rows = "".join(json.dumps({"en": f"line {i}", "de": f"line {i}"}) + "\n" for i in range(30))
    (tmp_path / "a.json").write_text(rows)
    split = SplitConfig(split="train")
    files = {"train": str(tmp_path / "a.json")}
    corpus = CorpusConfig(kind=CorpusKind.dataset, name="a", dataset="json", data_files=files, train=split, held_out=2,
                          source_column="en", target_column="de")  # fmt: skip
    with pytest.raises(UserError, match=r"^corpus\.validation: .*equal in 2 of 2"):
        prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    with pytest.raises(UserError, match=r"^corpus\.target_column: "):
        prepare(dataclasses.replace(corpus, target_column="en"), CleanConfig(), TOKENIZER, tmp_path / "out")
    meant = dataclasses.replace(corpus, target_language="en")
    assert prepare(meant, CleanConfig(), TOKENIZER, tmp_path / "out").corpus.manifest["counts"]["read"] == 30


def test_held_out_pairs_are_taken_from_train(tmp_path):
    corpus = dataclasses.replace(
        write_corpus(tmp_path / "in"), validation=SplitConfig(), test=SplitConfig(), held_out=9
    )
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    counts = prepared.corpus.manifest["counts"]["splits"]
    assert {split: counts[split]["pairs"] for split in SPLITS} == {"train": 182, "validation": 9, "test": 9}
    again = prepare(dataclasses.replace(corpus, held_out=8), CleanConfig(), TOKENIZER, tmp_path / "out")
    assert again.corpus.folder != prepared.corpus.folder


def test_a_corpus_of_which_nothing_is_left_is_told_with_the_reasons(tmp_path):
    corpus = write_corpus(tmp_path / "in", train_source=[b""] * 3, train_target=[b"x"] * 3)
    with pytest.raises(UserError, match=r"no training pair is left.*'empty': 3"):
        prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    corpus = write_corpus(tmp_path / "in", test_source=[], test_target=[])
    with pytest.raises(UserError, match=r"corpus\.test: has no pairs"):
        prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")


FULL_DISK = """
    import subprocess, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[4])
    from test_prepare import TOKENIZER, hashes, folders, prepare, write_corpus, CleanConfig
    from transloom.pipeline.errors import UserError

    disk, corpus_folder, clean_run = map(Path, sys.argv[1:4])
    corpus = write_corpus(corpus_folder)
    clean = prepare(corpus, CleanConfig(), TOKENIZER, clean_run, shard_pairs=16)
    refused = 0
    for kilobytes in range(16, 1000, 8):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
        try:
            done = prepare(corpus, CleanConfig(), TOKENIZER, disk / "out", shard_pairs=16)
            break
        except UserError as error:
            assert "disk is full" in str(error) and str(disk) in str(error), error
            stage = str(error).split(str(disk / "out"))[1].split("/")[1]
            print("full during", stage)
            refused += 1
            unfinished = [path for path in disk.glob("out/*/*") if ".tmp-" in path.name]
            assert not unfinished, unfinished
            assert all((path / "manifest.json").exists() for path in disk.glob("out/*/*"))
    for one, other in zip(folders(clean), folders(done), strict=True):
        assert hashes(one) == hashes(other) and one.name == other.name
    print("refused", refused)
"""


def test_a_full_disk_leaves_nothing_half_done_and_a_rerun_is_identical(tmp_path):  # fault 12
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=16k none {disk}"
    isolate = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*isolate, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    arguments = [disk, tmp_path / "in", tmp_path / "clean", Path(__file__).parent]
    command = f'{mount} && exec "$@"'
    run = subprocess.run(
        [*isolate, "sh", "-c", command, "-", sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for stage in ("corpora", "tokenizers", "shards"):
        assert f"full during {stage}" in run.stdout


def test_two_processes_prepare_the_same_corpus_at_once(tmp_path):
    corpus = write_corpus(tmp_path / "in")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        runs = [pool.submit(prepare, corpus, CleanConfig(), TOKENIZER, tmp_path / "out") for _ in range(2)]
        first, second = (run.result(timeout=600) for run in runs)
    assert folders(first) == folders(second)
    assert len(list((tmp_path / "out").glob("*/*"))) == 3


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("en", "fr")])
def test_multi30k(tmp_path, corpora, source, target):
    folder = corpora / "multi30k"
    names = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    splits = {s: SplitConfig(f"{folder}/{name}.{source}", f"{folder}/{name}.{target}") for s, name in names.items()}
    corpus = CorpusConfig(kind=CorpusKind.text, name="multi30k", **splits)
    started_at = time.monotonic()
    prepared = prepare(corpus, CleanConfig(), TokenizerConfig(), tmp_path)
    assert time.monotonic() - started_at < 60
    counts = prepared.shards.manifest["counts"]["splits"]
    contaminated = {"de": 2, "fr": 3}[target]  # captions that stand in validation or test, too
    pairs = {"train": 29_000 - contaminated, "validation": 1014, "test": 1000}
    assert {split: counts[split]["pairs"] for split in SPLITS} == pairs
    assert prepared.tokenizer.manifest["counts"]["vocab_size"] == 10_000
    # The references that scores are counted on are the published lines.
    assert (prepared.corpus.folder / "test.target").read_bytes() == Path(splits["test"].target).read_bytes()
    tokenizer, pairs = Tokenizer.load(prepared.tokenizer.folder), open_pairs(prepared.shards.folder, "validation")
    lines = (folder / f"val.{target}").read_bytes().split(b"\n")[:-1]
    decoded = tokenizer.decode([pairs.get("target", i).tolist() for i in range(1014)])
    assert [text.encode() for text in decoded] == [b" ".join(line.split()) for line in lines]
