"""What is said of a setting that is wrong: which one, what is wrong with it, and what is nearest to it."""

import difflib
import re
from collections.abc import Sequence

from omegaconf.errors import ConfigAttributeError, ConfigKeyError

CONTENDERS = """'race.contenders={a: ["model=small"], b: ["model=tiny"]}'"""  # as a shell takes it
# Of words that only look alike: "batch_size" is 0.55 from batch.tokens, "reference" 0.53 from experiment.
ALIKE = 0.54
SPELT_ALIKE = 0.7  # of the last parts of two names: a slip of the finger
TELLING = 6  # letters; "path", "name", "step" are of anything
# OmegaConf's words for a value of a wrong type, and ours.
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
    """How a value is quoted, for the shell and within it for Hydra."""
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
    """What is said of a key that does not exist."""
    section, _, leaf = key.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in known}
    inside = {leaves[name]: name for name in known if section and name.rpartition(".")[0] == section}
    if inside:  # the section is right: its settings, or a word of this very name, unless it may stand for anything
        same = [name for name in known if leaves[name] == leaf and len(leaf) >= TELLING]
        if near := nearest(leaf, list(inside), SPELT_ALIKE):
            return f"no such setting. Did you mean {inside[near]}?"
        if same and (near := nearest(key, same)):
            return f"no such setting. Did you mean {near}?"
        return f"no such setting. {section} has {', '.join(inside)}."
    # The right word in the wrong section comes before a part of the right word, and that before one that looks alike.
    same = [name for name in known if leaves[name] == leaf] or [name for name in known if leaf in leaves[name]]
    near = nearest(key, same) or nearest(key, known, ALIKE)
    hint = f"Did you mean {near}?" if near else "`--cfg job` prints all that there are."
    return f"no such setting. {hint}"


def nearest(word: str, known: Sequence[str], alike: float = 0.3) -> str | None:
    """The one of the known words that is most like it, by difflib's ratio; None where none is that much alike."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=alike)), None)


def explain(error: BaseException, known: Sequence[str]) -> str:
    """One line out of Hydra's chain of errors, starting with the key where one is known.

    Args:
        known: the names of all settings and groups.
    """
    cause: BaseException | None = error
    while cause is not None:
        key = getattr(cause, "full_key", None)
        if key and isinstance(cause, ConfigKeyError | ConfigAttributeError):
            return f"{key}: {unknown(key, known)}"
        said = str(cause).partition("\n")[0]
        if key and re.search(r"(?i)not optional|'None'|NoneType", said):  # OmegaConf's words for it
            return f"{key}: can't be null; give it a value, or leave it out"
        if key:
            for theirs, ours in WRONG_TYPES.items():
                if found := re.match(theirs, said):
                    said = ours.format(*found.groups())
            return f"{key}: {said}" + (f". {quoting(key)}" if key.startswith("race.contenders") else "")
        cause = cause.__cause__
    return str(error).partition("\n    full_key")[0]
