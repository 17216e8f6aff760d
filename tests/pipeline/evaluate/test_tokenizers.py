"""BLEU counts words by the tokenizer of the target language, as sacreBLEU's own command does."""

import subprocess
import sys
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU

from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate import tokenizers
from transloom.pipeline.evaluate.buckets import by_length, frequencies, words_of
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.significance import count_statistics, score_of, signature_of
from transloom.pipeline.evaluate.tokenizers import (
    TOKENIZERS,
    EvaluateConfig,
    load_tokenizer,
    refuse_unspaced,
    tokenizer_for,
    tokenizer_of,
)

CHINESE = ["今天红色的房子卖绿色的狗。", "昨天新的猫找到新的狗。", "他说:hello world!"]
OTHER = ["今天红色的房子卖绿色的狗了。", "昨天新的猫找新的狗。", "她说:hello, world!"]
JAPANESE = ["今日は赤い家が緑の犬を売ります。", "昨日、新しい猫が新しい犬を見つけました。"]
KOREAN = ["오늘 빨간 집이 초록색 개를 팝니다.", "어제 새 고양이가 새 개를 찾았습니다."]
THAI = ["วันนี้บ้านสีแดงขายสุนัขสีเขียว", "เมื่อวานแมวใหม่พบสุนัขใหม่"]


@pytest.mark.parametrize(
    ("codes", "tokenizer"),
    [
        ("zh zh-CN zh_TW zho zho_Hans zho_Hant cmn cmn-Hans-CN chi yue_Hant ZH_cn Chinese zh-Hans-SG", "zh"),
        ("ja jpn ja_JP ja-JP jpn_Jpan JA", "ja-mecab"),
        ("ko kor ko-KR kor_Hang", "ko-mecab"),
        ("th tha th-TH tha_Thai km khm_Khmr lo lao_Laoo my mya_Mymr bur bod_Tibt", "char"),
        ("de en fr-CA deu_Latn vi kk kg zu zh-Latn ja_Latn mya_Latn id", "13a"),
    ],
)
def test_a_languages_tokenizer(codes: str, tokenizer: str) -> None:
    assert {code: tokenizer_for(code) for code in codes.split()} == dict.fromkeys(codes.split(), tokenizer)


def test_the_setting_comes_before_the_language() -> None:
    assert tokenizer_for("zh", EvaluateConfig("char")) == "char"
    assert tokenizer_for("de", EvaluateConfig("intl")) == "intl"
    assert tokenizer_for("zh", EvaluateConfig()) == "zh"
    assert set(TOKENIZERS) == set(BLEU.TOKENIZERS)
    with pytest.raises(ValueError, match=r"^tokenize: 'mecab' "):
        EvaluateConfig("mecab")


@pytest.mark.parametrize(
    ("language", "lines", "module"),
    [("zh", CHINESE, None), ("ja", JAPANESE, "MeCab"), ("ko", KOREAN, "mecab_ko"), ("th", THAI, None)],
)
def test_a_perfect_translation_has_100_and_a_reversed_one_has_not(
    language: str, lines: list[str], module: str | None
) -> None:
    if module:
        pytest.importorskip(module)
    tokenize = tokenizer_for(language)
    perfect = score(lines, lines, in_full=True, tokenize=tokenize)
    assert perfect["bleu"].value == pytest.approx(100.0)
    assert f"tok:{tokenize}" in perfect["bleu"].signature
    assert tokenizer_of(perfect["bleu"].signature) == tokenize
    assert signature_of("bleu", tokenize) == perfect["bleu"].signature
    reversed_lines = [line[::-1] for line in lines]
    assert score(reversed_lines, lines, tokenize=tokenize)["bleu"].value < 30.0
    assert score(reversed_lines, lines, tokenize=tokenize)["chrf"] == score(reversed_lines, lines)["chrf"]


def test_scores_are_those_of_sacrebleus_own_command(tmp_path: Path) -> None:
    said, meant = tmp_path / "said", tmp_path / "meant"
    said.write_text("".join(f"{line}\n" for line in OTHER), encoding="utf-8")
    meant.write_text("".join(f"{line}\n" for line in CHINESE), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "sacrebleu",
        str(meant),
        "-i",
        str(said),
        "-m",
        "bleu",
        "-b",
        "-w",
        "4",
        "-l",
        "en-zh",
    ]
    expected = float(subprocess.run(words, capture_output=True, check=True).stdout)
    assert score(OTHER, CHINESE, tokenize="zh")["bleu"].value == pytest.approx(expected, abs=1e-4)
    counted = count_statistics({"one": OTHER}, CHINESE, tokenize="zh")
    assert score_of("bleu", counted["bleu"]["one"]) == pytest.approx(expected, abs=1e-4)


def test_ter_counts_chinese_characters() -> None:
    found = score(OTHER, CHINESE, in_full=True, tokenize="zh")["ter"]
    assert 0 < found.value < 50  # one or two of about ten characters differ in each sentence
    assert "asian:yes" in found.signature
    assert signature_of("ter", "zh") == found.signature
    assert score(["a b"], ["a c"], in_full=True)["ter"].signature == signature_of("ter")


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, extra in (("ja", "ja"), ("ko", "ko")):
        module = pytest.importorskip(f"sacrebleu.tokenizers.tokenizer_{name}_mecab")
        monkeypatch.setattr(module, "MeCab", None)
        load_tokenizer.cache_clear()
        with pytest.raises(UserError, match=rf"^evaluate\.tokenize: .*pip install 'sacrebleu\[{extra}\]'"):
            load_tokenizer(f"{name}-mecab")
        with pytest.raises(UserError, match=r"^evaluate\.tokenize: "):
            score(["a"], ["a"], tokenize=f"{name}-mecab")
    load_tokenizer.cache_clear()


def test_references_without_spaces_are_refused_for_a_tokenizer_of_words() -> None:
    for lines in (CHINESE, JAPANESE, THAI):
        with pytest.raises(UserError, match=r"^here has no spaces .*target_language=zh"):
            refuse_unspaced((line.encode() for line in lines), "13a", "here", "target_language=zh")
        refuse_unspaced((line.encode() for line in lines), "char", "here", "")
    for lines in (KOREAN, ["Ein Hund 狗 läuft.", "", "«Ça»"], ["今天 红色 的 房子"], [""], ["1 2 3"], []):
        refuse_unspaced((line.encode() for line in lines), "13a", "here", "")


def test_parts_of_a_test_set_count_the_same_words() -> None:
    assert words_of(["新的猫。"], "zh") == [["新", "的", "猫", "。"]]
    assert frequencies(["新的猫。", "新"], ["新", "猫", "狗"], tokenize="zh") == {"新": 2, "猫": 1, "狗": 0}
    assert by_length(CHINESE, "zh") == {"6-10": [2], "11-15": [0, 1]}
    assert by_length(["ab", "a b c d e f"], "char") == {"0-5": [0], "6-10": [1]}
    assert by_length(["a, b", "a b c d e f"]) == {"0-5": [0], "6-10": [1]}  # between spaces, as before


def test_every_tokenizer_has_its_signature_back() -> None:
    for name in TOKENIZERS:
        assert tokenizer_of(f"nrefs:1|case:mixed|eff:no|tok:{name}-0.996-X|smooth:exp|version:2.6.0") == name
    assert tokenizer_of("nothing") == tokenizers.DEFAULT
