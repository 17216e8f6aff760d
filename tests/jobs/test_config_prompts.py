"""Settings of prompts and responses through the command line."""

import pytest

from transloom.jobs.config.compose import load_config
from transloom.jobs.config.schema import pairs_of
from transloom.pipeline.data.prompts import PromptsConfig, ResponseMetric
from transloom.pipeline.errors import UserError
from transloom.pipeline.tasks.build import TaskName, flops_columns, selecting_metric, token_columns

EXPERIMENTS = {
    "debian_summaries": ResponseMetric.rouge,
    "django_en_python": ResponseMetric.exact_match,
    "xquad_en": ResponseMetric.squad,
}


@pytest.mark.parametrize(("name", "metric"), EXPERIMENTS.items())
def test_an_experiment_is_scored_by_its_metric(name: str, metric: ResponseMetric) -> None:
    config = load_config([f"experiment=transfer/{name}", "corpus.path=/data"])
    assert isinstance(config.corpus, PromptsConfig) and config.corpus.metric is metric
    chosen = selecting_metric(config.task, config.corpus)
    assert chosen.name == {"rouge": "rouge_l", "exact_match": "exact_match", "squad": "f1"}[metric.value]
    assert config.languages is None and token_columns(config.task) == ("text", "response")
    assert all(path.startswith("/data/") for path in config.corpus.source("train").patterns)


def test_files_and_templates_are_given_as_they_are_typed() -> None:
    words = ["experiment=transfer/django_en_python", "corpus=records", r"corpus.template={text}\nTL;DR:\n"]
    config = load_config([*words, "corpus.train.files=my/*.jsonl.xz"])
    assert isinstance(config.corpus, PromptsConfig)
    assert config.corpus.train.patterns == ("my/*.jsonl.xz",)
    assert config.corpus.template == r"{text}\nTL;DR:\n"
    config = load_config([*words, "corpus.train.files={text: a.txt, response: b.txt}"])
    assert isinstance(config.corpus, PromptsConfig)
    assert config.corpus.train.files == {"text": "a.txt", "response": "b.txt"}


@pytest.mark.parametrize("model", ["small", "lm_tiny"])
def test_both_kinds_of_model_are_taken_and_their_operations_counted(model: str) -> None:
    config = load_config(["experiment=transfer/django_en_python", f"model={model}"])
    expected = ("text",) if model == "lm_tiny" else ("text", "response")
    assert flops_columns(TaskName.prompt_response, config.model) == expected


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["corpus.max_response_tokens=256"], r"^corpus\.max_response_tokens:"),
        (["corpus.max_response_tokens=1"], r"^corpus\.max_response_tokens:"),
        (["corpus.template=text"], r"^corpus\.template:"),
        (["corpus.metric=bleu"], r"^corpus\.metric"),
        (["corpus.held_out=0", "corpus.validation.files=null"], r"^corpus\.held_out:"),
        (["clean.max_ratio=3"], r"^clean:"),
        (["batch.micro_tokens=128", "batch.tokens=128"], r"^batch\.micro_tokens:"),
        (["corpus.source_language=en"], r"^corpus\.source_language:"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(words: list[str], key: str) -> None:
    with pytest.raises(UserError, match=key):
        load_config(["experiment=transfer/django_en_python", *words])


def test_what_is_about_translations_alone_says_so() -> None:
    with pytest.raises(UserError, match=r"^task:"):
        pairs_of(load_config(["experiment=transfer/xquad_en"]), "race")
