"""Messages about wrong settings: the setting, the fault, and the nearest name."""

import difflib
import re
from collections.abc import Sequence

from omegaconf.errors import ConfigAttributeError, ConfigKeyError

CONTENDERS = """'race.contenders={a: ["model=small"], b: ["model=tiny"]}'"""  # quoted for a shell
# The least similarity of a suggestion: "batch_size" has 0.55 to batch.tokens, "reference" 0.53 to experiment.
ALIKE = 0.54
SPELT_ALIKE = 0.7  # of the last parts of two names, for typing errors
TELLING = 6  # letters; shorter names, such as "path", "name" and "step", are in many sections
# OmegaConf's messages for a value of a wrong type -> this project's messages.
WRONG_TYPES = {
    r"Value '(.*)' of type .* could not be converted to Integer": "{0!r} is not a whole number",
    r"Value '(.*)' of type .* could not be converted to Float": "{0!r} is no number",
    r"Value '(.*)' is not a valid bool": "{0!r} is neither true nor false",
    r"Invalid value '(.*)', expected one of \[(.*)\]": "{0!r} is not one of {1}",
    r"Cannot convert .* to string: '(.*)'": "{0} is not a text",
    r"Invalid value assigned: \w+ is not a ListConfig": "is not a list, which is written as [a,b]",
    r"Cannot assign \w+ to Dict": "is not a dictionary, which is written as {{a: b}}",
}


def quoting(word: str) -> str:
    """The advice on quoting a value, for the shell and, inside, for Hydra."""
    if word.startswith("race.contenders"):
        return f"Contenders are written as {CONTENDERS}."
    key = word.partition("=")[0] or "key"
    if re.search(r"=\s*[\[{]", word):
        return (
            "In a list or a dictionary, a text of more than letters, digits and ./_- needs quotes: "
            f"""'{key}={{a: "b c"}}', '{key}=["b c"]'."""
        )
    return f"""A value with spaces, commas or braces needs quotes of its own: '{key}="a, b"'."""


def unknown(key: str, known: Sequence[str]) -> str:
    """The message for a key that does not exist."""
    section, _, leaf = key.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in known}
    inside = {leaves[name]: name for name in known if section and name.rpartition(".")[0] == section}
    if inside:  # the section is right: one of its settings, or an equal name elsewhere that is long enough
        same = [name for name in known if leaves[name] == leaf and len(leaf) >= TELLING]
        if near := nearest(leaf, list(inside), SPELT_ALIKE):
            return f"no such setting. Did you mean {inside[near]}?"
        if same and (near := nearest(key, same)):
            return f"no such setting. Did you mean {near}?"
        return f"no such setting. {section} has {', '.join(inside)}."
    # First an equal name in another section, then a name that contains the word, then a similar name.
    same = [name for name in known if leaves[name] == leaf] or [name for name in known if leaf in leaves[name]]
    near = nearest(key, same) or nearest(key, known, ALIKE)
    hint = f"Did you mean {near}?" if near else "`--cfg job` prints all that there are."
    return f"no such setting. {hint}"


def nearest(word: str, known: Sequence[str], alike: float = 0.3) -> str | None:
    """The known word most similar to `word`, by difflib's ratio; None if all ratios are below `alike`."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=alike)), None)


def explain(error: BaseException, known: Sequence[str]) -> str:
    """One line from Hydra's chain of errors, beginning with the key, if known.

    Args:
        known: the names of all settings and groups.
    """
    cause: BaseException | None = error
    while cause is not None:
        key = getattr(cause, "full_key", None)
        if key and isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return f"{key}: {unknown(key, known)}"
        said = str(cause).partition("\n")[0]
        if key and re.search(r"(?i)not optional|'None'|NoneType", said):  # OmegaConf's words for null
            return f"{key}: can't be null; give it a value, or leave it out"
        if key:
            for theirs, ours in WRONG_TYPES.items():
                if found := re.match(theirs, said):
                    said = ours.format(*found.groups())
            return f"{key}: {said}" + (f". {quoting(key)}" if key.startswith("race.contenders") else "")
        cause = cause.__cause__
    return str(error).partition("\n    full_key")[0]
