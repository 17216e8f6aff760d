"""Lines in parts: at ends of sentences, else at pauses; nothing is lost."""

import pytest

from transloom.pipeline.data.sentence_ends import fitting_parts, sentences


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Smith met J. R. Brown at 5.30 p.m. on 3. Mai.", ["Dr. Smith met J. R. Brown at 5.30 p.m. on 3. Mai."]),
        ('He said: "No." Then he left.', ['He said: "No."', "Then he left."]),
        ("我爱你。你好吗？好！", ["我爱你。", "你好吗？", "好！"]),
        ("Это дом. Там сад.", ["Это дом.", "Там сад."]),
        ("यह घर है। वह बाग है।", ["यह घर है।", "वह बाग है।"]),
        ("version 1.2 is out", ["version 1.2 is out"]),
        ("", [""]),
        ("  Yes.  B  ", ["Yes.", "B"]),
    ],
)
def test_sentences(line: str, parts: list[str]) -> None:
    assert [text for text, _ in sentences(line)] == parts
    assert "".join(text + gap for text, gap in sentences(line)) == line.strip()


def test_what_does_not_fit_is_cut_at_commas_spaces_and_within_words() -> None:
    def parts(line: str, length: int) -> list[str]:
        cut = fitting_parts(line, lambda text: len(text) <= length)
        assert "".join(text + gap for text, gap in cut) == line
        assert all(len(text) <= length for text, _ in cut)
        return [text for text, _ in cut]

    assert parts("Short. This one is long, and has a comma.", 24) == ["Short.", "This one is long,", "and has a comma."]
    assert parts("abcdefgh", 3) == ["ab", "cd", "ef", "gh"]
    assert fitting_parts("abc", lambda text: False) == [("a", ""), ("b", ""), ("c", "")]
