"""Export: a trained model as a folder that CTranslate2 or Hugging Face's transformers loads."""

from enum import Enum
from pathlib import Path
from typing import TypeVar

from transloom.jobs.cli import configuration, sort_words, usage
from transloom.jobs.runs.model import find_model
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.errors import UserError

Choice = TypeVar("Choice", bound=Enum)


def main(argv: list[str]) -> int:
    from transloom.pipeline.export import Format, Quantization, export

    words, own, settings = sort_words(argv, ("format", "quantization"))
    config = configuration("export", settings)
    if len(words) != 2 or "format" not in own:
        raise UserError(usage("export"))
    folder = Path(words[1])
    to = _choice("format", own["format"], Format)
    quantization = _choice("quantization", own.get("quantization", "float32"), Quantization)
    export(find_model(words[0], output_dir(config)), folder, to, quantization)
    print(printable(f"Exported to {folder.absolute()}"))
    return 0


def _choice(key: str, value: str, choices: type[Choice]) -> Choice:
    try:
        return choices(value)
    except ValueError:
        raise UserError(f"{key}={value}: there is {', '.join(one.value for one in choices)}") from None
