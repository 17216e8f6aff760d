"""What BLEU counts as words: a tokenizer of sacreBLEU's, by default that of the target language."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from transloom.pipeline.errors import UserError

SCORING_LIBRARY = "sacrebleu"  # the distribution, whose version decides about scores
DEFAULT = "13a"  # mteval's, for languages that write spaces between words
TOKENIZERS = (
    *(DEFAULT, "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"),
    *("spm", "flores101", "flores200", "spBLEU-1K"),
)
SPACED = (DEFAULT, "intl", "none")  # those that look for words between spaces
EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}  # of sacreBLEU's package
# ISO 639-1, 639-2 and 639-3 codes, and what is often written in their place.
LANGUAGES = {
    "zh": "zh zho chi cmn yue wuu hak gan hsn lzh cn chinese mandarin cantonese",
    "ja-mecab": "ja jpn jp japanese",
    "ko-mecab": "ko kor korean",
    # Thai, Khmer, Lao, Burmese, Shan, Tibetan, Dzongkha: sacreBLEU's flores200 would have to be downloaded.
    "char": "th tha thai km khm khmer lo lao my mya bur burmese shn bo bod tib tibetan dz dzo",
}
LATIN = {"latn", "pinyin", "romaji", "romanized", "romanised"}
# Kana and Han; Thai, Lao and Tibetan; Burmese; Khmer. Hangul is not here: Korean has spaces.
UNSPACED = re.compile(
    "[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]"
)
LETTER = re.compile(r"[^\W\d_]")
EXAMINED_LINES = 1000


@dataclass(frozen=True)
class EvaluateConfig:
    """How translations are scored.

    Attributes:
        tokenize: the tokenizer of sacreBLEU that BLEU counts words by, such as 13a, zh, ja-mecab or char; None: that of
            the target language.

    Raises:
        ValueError: sacreBLEU has no such tokenizer.
    """

    tokenize: str | None = None

    def __post_init__(self) -> None:
        if self.tokenize is not None and self.tokenize not in TOKENIZERS:
            raise ValueError(f"tokenize: {self.tokenize!r} is none of {', '.join(TOKENIZERS)}; null: by the language")


def tokenizer_for(language: str, config: EvaluateConfig | None = None) -> str:
    """The name of the tokenizer for a target language.

    Args:
        language: a code with or without country or script, in any case: zh, zh-CN, zh_TW, zho_Hans, cmn, jpn_Jpan.
        config: its tokenizer, where it names one, comes before the language's.
    """
    if config is not None and config.tokenize is not None:
        return config.tokenize
    code, *parts = re.split(r"[^a-z]+", language.strip().lower())
    if LATIN.intersection(parts):  # a transcription, which has spaces
        return DEFAULT
    return next((name for name, codes in LANGUAGES.items() if code in codes.split()), DEFAULT)


def tokenizer_of(signature: str) -> str:
    """The name of the tokenizer that a signature of BLEU's has; mecab's have versions behind the name."""
    token = re.search(r"tok:([^|]*)", signature)
    names = [name for name in TOKENIZERS if token and token[1].startswith(name)]
    return max(names, key=len, default=DEFAULT)


@cache
def load_tokenizer(name: str) -> Callable[[str], str]:
    """sacreBLEU's tokenizer: a line to its tokens with spaces between them.

    Raises:
        UserError: a package or a file that the tokenizer needs is missing.
    """
    from sacrebleu.metrics.bleu import BLEU

    try:
        return BLEU(tokenize=name).tokenizer
    except Exception as error:  # RuntimeError without MeCab, AssertionError with another dictionary, network errors
        if extra := EXTRAS.get(name):
            reason = str(error).strip().partition("\n")[0]
            advice = f"pip install 'sacrebleu[{extra}]'"
        else:
            reason = f"its model can't be loaded ({type(error).__name__}: {error})"
            advice = "with network access, sacreBLEU downloads the model once"
        raise UserError(
            f"evaluate.tokenize: BLEU needs the tokenizer {name}, and {reason} Do: {advice}; or count characters "
            "instead: evaluate.tokenize=char"
        ) from error


def refuse_unspaced(lines: Iterable[bytes], tokenize: str, where: str, advice: str) -> None:
    """Refuses references without spaces for a tokenizer that looks for words between spaces: BLEU would be near 0
    whatever the translations are.

    Args:
        lines: the references, in UTF-8; the first thousand are examined.
        tokenize: the name of the tokenizer.
        where: what the lines are, for the message.
        advice: what sets the language.
    Raises:
        UserError: most of the letters are of a script that has no spaces.
    """
    if tokenize not in SPACED:
        return
    text = "\n".join(line.decode(errors="replace") for _, line in zip(range(EXAMINED_LINES), lines, strict=False))
    letters, unspaced = len(LETTER.findall(text)), len(UNSPACED.findall(text))
    if 2 * unspaced > letters > 0 and text.count(" ") * 10 < len(text):
        raise UserError(
            f"{where} has no spaces between words, so BLEU by the tokenizer {tokenize} would be near 0. Say the "
            f"language: {advice}. Where {tokenize} is meant: evaluate.tokenize={tokenize}"
        )
