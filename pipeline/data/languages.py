"""Identifies the language of a sentence, by a library that not every installation has."""

from collections.abc import Callable
from functools import cache

from transloom.pipeline.errors import UserError


@cache
def language_identifier() -> Callable[[str], str]:
    """A function of a text to the code of its language (ISO 639-1), by py3langid, whose package has the model.

    Raises:
        UserError: py3langid is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "clean.identify_language: needs the package py3langid, which is not installed here: "
            "pip install -c constraints.txt -e '.[langid]', on every machine of the cluster"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return lambda text: identifier.classify(text)[0]
