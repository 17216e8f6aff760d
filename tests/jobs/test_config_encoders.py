"""Settings of classification and masked language models: which fit together, and what is refused by its key."""

import pytest

from transloom.jobs.config.compose import from_dict, load_config, to_dict
from transloom.pipeline.errors import UserError

CLASSIFICATION = "experiment=transfer/classification"
MASKED = "experiment=transfer/pretrain_for_sst2"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((MASKED, "model=lm_tiny"), r"^model\.causal: "),
        (("experiment=language_model/demo", "model.causal=false"), r"^model\.causal: "),
        ((CLASSIFICATION, "model=small"), r"^model\.architecture: "),
        ((CLASSIFICATION, "clean.max_words=3"), r"^clean: "),
        ((CLASSIFICATION, "corpus.held_out=2"), r"^corpus\.held_out: "),
        ((CLASSIFICATION, "corpus.train.text=a"), r"^corpus\.train\.text: "),
        ((CLASSIFICATION, "model.pooling=max"), r"^model\.pooling: "),
        ((CLASSIFICATION, "batch.micro_tokens=64", "batch.tokens=128"), r"^batch\.micro_tokens: "),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: tuple[str, ...], key: str) -> None:
    with pytest.raises(UserError, match=key):
        load_config(words)


def test_a_classifier_may_be_causal_and_its_settings_come_back_from_a_file() -> None:
    config = load_config([CLASSIFICATION, "model=lm_tiny", "model.pooling=last", "corpus.train.files=a b.tsv"])
    assert config.model.causal and config.corpus.train.files == "a b.tsv"  # pyright: ignore
    assert from_dict(to_dict(config)) == config
    masked = load_config([MASKED, "corpus.decontaminate=[a.tsv,b.tsv]"])
    assert masked.corpus.decontaminate == ["a.tsv", "b.tsv"] and from_dict(to_dict(masked)) == masked  # pyright: ignore
