import random

import pytest

from transloom.pipeline.data.clean import CleanConfig, CleanReport, clean_pairs
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.words import count_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("a dog — it runs .", 6),
        ("ein\u00a0Hund läuft", 2),  # a no-break space separates nothing, as before
        ("a\x1cb c", 2),
        ("개가 눈 속을 달린다", 4),  # Korean has spaces
        ("Собака бежит", 2),
        ("今日は赤い家です。", 4),  # eight characters, and a full stop
        ("我", 1),
        ("iPhone 15 を買った", 4),  # two words of Latin script and four characters
        ("ｶﾀｶﾅ", 2),
        ("สวัสดีครับ", 2),  # ten characters
        ("ສະບາຍດີ ຂ້ອຍ", 3),  # eleven characters
        ("សួស្តី", 2),
        ("မင်္ဂလာပါ", 2),
        ("\U00020000\U00020001\U00020002", 2),
        ("。。。", 1),
    ],
)
def test_words_are_counted_by_the_script_of_the_text(text, words):
    assert count_words(text) == words


def test_words_of_scripts_with_spaces_are_what_whitespace_separates():
    chooser = random.Random(0)
    letters = "aä é\u00a0ß–«»ЖΩאע한\u2009\u3000。 \x1c\x0b"
    for _ in range(1000):
        text = "".join(chooser.choices(letters, k=30))
        assert count_words(text) == len(text.encode().split())


def kept(pairs):
    report = CleanReport()
    rows = [(i, f"line {i}", SentencePair(*pair)) for i, pair in enumerate(pairs, 1)]
    return [pair for _, pair in clean_pairs(rows, CleanConfig(), report)], report.dropped


ENGLISH = "The red house sells the green dog today and the old dog sells the small cat tomorrow."
JAPANESE = "今日赤い家は緑の犬を売る、そして明日古い犬は小さい猫を売る。"
CHINESE = "今天红色的房子卖绿色的狗，明天旧的狗卖小的猫。"
THAI = "วันนี้บ้านสีแดงขายสุนัขสีเขียว และพรุ่งนี้สุนัขแก่ขายแมวตัวเล็ก"


@pytest.mark.parametrize("text", [JAPANESE, CHINESE, THAI])
def test_translations_into_scripts_without_spaces_are_kept_and_mismatches_dropped(text):
    pairs = [(ENGLISH, text), (text, ENGLISH), (text, JAPANESE)]
    assert kept(pairs) == (pairs, {})
    assert kept([("Yes", text * 3), (text * 3, "Yes"), (ENGLISH * 3, text[:2])])[1] == {"length_ratio": 3}


def test_the_limit_of_words_counts_scripts_without_spaces_too():
    assert kept([("猫" * 500, "a " * 200), ("猫" * 501, "a " * 200)])[1] == {"too_long": 1}
