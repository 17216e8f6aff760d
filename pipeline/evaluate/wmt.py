"""Test sets by sacreBLEU's names, such as wmt24: sacreBLEU downloads them once, into ~/.sacrebleu or $SACREBLEU."""

import re
from pathlib import Path

from transloom.pipeline.errors import UserError


def is_known(name: str) -> bool:
    """Whether sacreBLEU has a test set of this name."""
    from sacrebleu.dataset import DATASETS

    return name in DATASETS


def files_of(name: str, source_language: str, target_language: str) -> tuple[Path, list[Path]]:
    """The file of the sources, and those of the official references, one or several.

    Args:
        name: see `is_known`.
        source_language, target_language: codes, whose region counts for nothing.
    Raises:
        UserError: the test set has no such languages, or can't be downloaded.
    """
    from sacrebleu.dataset import DATASETS

    dataset = DATASETS[name]
    pair = "-".join(re.split(r"[-_]", language.lower())[0] for language in (source_language, target_language))
    if pair not in dataset.langpairs:
        raise UserError(f"on: {name} has no {pair}; it has {', '.join(sorted(dataset.langpairs))}")
    try:
        return Path(dataset.get_source_file(pair)), [Path(file) for file in dataset.get_reference_files(pair)]
    except (Exception, SystemExit) as error:  # sacreBLEU ends the process where a file is not what it should be
        raise UserError(
            f"on: sacreBLEU can't get {name} ({type(error).__name__}: {error}). Download it where there is a network: "
            f"sacrebleu -t {name} -l {pair} --echo src; then copy ~/.sacrebleu/{name} here (or set SACREBLEU to a "
            "folder that has it)"
        ) from error
