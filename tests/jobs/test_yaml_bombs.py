"""YAML and JSON from elsewhere: what would grow, hang or nest is refused at once, with the file's name."""

from pathlib import Path

import pytest
import yaml

from transloom.jobs.config.compose import load_config, read_config, to_yaml
from transloom.jobs.remote.clusters import load_clusters
from transloom.pipeline.errors import UserError
from transloom.pipeline.untrusted import MAX_DEPTH, parse_yaml, read_yaml, refuse_deep_words

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
GROWING = "".join(f"k{i}: '${{k{i + 1}}}${{k{i + 1}}}'\n" for i in range(40)) + "k40: x\n"

BOMBS = {
    "aliases in lists": LAUGHS,
    "aliases in mappings": LAUGHS.replace("[", "{p: [").replace("]", "]}"),
    "aliases merged": MERGED,
    "an alias of itself": "a: &a [*a]\n",
    "deep lists": "a: " + "[" * 100_000,
    "deep mappings": "{a: " * 5_000,
    "deep blocks": "".join(f"{' ' * i}a:\n" for i in range(1000)),
    "deep dashes": "- " * 5_000,
    "too large": "# " + "x" * 2**21,
    "interpolations": GROWING,
    "a Python object": "a: !!python/object/apply:os.system [true]\n",
    "a number without end": "a: " + "1" * 10_000 + "\n",
    "a key in a list": "? [a]\n: b\n",
    "a control character": "a: \x01\n",
    "a list": "- a\n",
    "a text": "a\n",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("reader", ["experiment", "config.yaml", "clusters"])
def test_a_bomb_is_refused_at_once(name: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "transloom" / "clusters.yaml"
    file.parent.mkdir()
    file.write_text(BOMBS[name])
    with pytest.raises(UserError) as refused:
        match reader:
            case "experiment":
                load_config([f"experiment={file}"])
            case "config.yaml":
                read_config(file)
            case _:
                load_clusters()
    assert str(file) in str(refused.value) and len(str(refused.value)) < 1000


def test_a_few_aliases_are_as_good_as_what_they_name(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 1}\n")
    assert read_yaml(file) == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 1}}
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "here") is not None


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "word",
    [f"sweep.space={'{a: ' * 3000}", f"sweep.warm_start={'[' * 3000}{']' * 3000}", "name=" + "${name}" * 30],
)
def test_a_word_that_nests_or_grows_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"deep|interpolations"):
        load_config([word])
    refuse_deep_words(["race.contenders={a: [model=tiny]}"])


def test_a_secret_in_a_list_of_files_is_not_in_config_yaml(tmp_path: Path) -> None:
    url = "https://host/train.parquet?sv=1&sig=canary"
    config = load_config(
        ["corpus.kind=dataset", "corpus.dataset=parquet", "corpus.train.split=train", f"corpus.data_files.train={url}"]
    )
    assert config.corpus.data_files["train"] == url  # what reads the corpus
    text = to_yaml(config)
    assert "canary" not in text
    assert yaml.safe_load(text)["corpus"]["data_files"]["train"] == "https://host/train.parquet?sv=1&sig=***"
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml").corpus.data_files["train"].endswith("sig=***")
