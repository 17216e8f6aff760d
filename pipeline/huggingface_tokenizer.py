"""The tokenizer of a language model as transformers loads it: tokenizer.json and tokenizer_config.json."""

import json
from pathlib import Path
from typing import Any

from transloom.pipeline.data.text_tokenizer import (
    CHARACTERS_FILE,
    END_OF_TEXT,
    JSON_FILE,
    MAX_FILE_BYTES,
    SETTINGS_FILE,
    CharacterTokenizer,
    TextTokenizer,
)
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.untrusted import read_small

UNKNOWN = "\ufffd"  # what an unknown symbol decodes to


def write_huggingface_tokenizer(model: Path, tokenizer: TextTokenizer, context: int, folder: Path) -> None:
    """Writes a tokenizer that has the ids of `tokenizer` for any text, into `folder`.

    What a tokenizer.json adds around a text, cuts or pads is left out, for the model was trained without it. The text
    "<|endoftext|>" stays text (split_special_tokens), as it does here.

    Args:
        model: the folder of the tokenizer's file.
        context: tokens that the model reads at once.
    Raises:
        UserError: transformers has no such tokenizer.
    """
    if isinstance(tokenizer, CharacterTokenizer):
        settings = _characters(json.loads(read_small(model / CHARACTERS_FILE, MAX_FILE_BYTES))["characters"])
    elif (model / JSON_FILE).exists():
        settings = json.loads(read_small(model / JSON_FILE, MAX_FILE_BYTES))
    else:
        raise UserError(
            f"{model}: format=huggingface takes a {JSON_FILE} or the characters of a text; the model's tokenizer is a "
            "SentencePiece model. Train with tokenizer.kind=byte_bpe, or convert tokenizer.model with transformers"
        )
    settings["truncation"] = settings["padding"] = None
    if (settings.get("post_processor") or {}).get("type") != "ByteLevel":  # which only moves offsets
        settings["post_processor"] = None
    end = _end_token(settings, tokenizer.end_of_text)
    write_json(folder / JSON_FILE, settings)
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    write_json(folder / SETTINGS_FILE, options)


def _end_token(settings: dict[str, Any], end_of_text: int) -> str:
    """The end of text's name, which is added where the tokenizer has an id but no token for it."""
    added = settings.setdefault("added_tokens", [])
    vocabulary = settings["model"].get("vocab", {})
    # Of a Unigram model the vocabulary is a list of (token, score).
    names = vocabulary if isinstance(vocabulary, dict) else {pair[0]: i for i, pair in enumerate(vocabulary)}
    for token in added:
        if token["id"] == end_of_text:
            token["special"] = True
            return token["content"]
    taken = {*names, *(token["content"] for token in added)}
    of_model = next((name for name, number in names.items() if number == end_of_text), None)
    name = of_model or next(
        name for name in (END_OF_TEXT, *(f"<|endoftext{i}|>" for i in range(len(taken) + 1))) if name not in taken
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": end_of_text, "content": name, **flags, "special": True})
    return name


def _characters(characters: str) -> dict[str, Any]:
    """A byte pair encoding without pairs: each character is a token, all others are the unknown one."""
    unknown = next(name for name in (UNKNOWN, "<unk>") if name not in characters)
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**{character: i for i, character in enumerate(characters)}, unknown: len(characters)},
            "merges": [],
        },
    }
