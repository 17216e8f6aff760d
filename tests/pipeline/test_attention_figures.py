"""Pictures of attention: what is in them, at every length, and letters that no font has."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.image import imread

from transloom.pipeline.attention_maps import AttentionMaps
from transloom.pipeline.figures import attention as attention_figures
from transloom.pipeline.figures.attention import draw_attention

SOURCE, WRITTEN = ["A", "small", "dog", "runs", ".", "</s>"], ["Ein", "kleiner", "Hund", "läuft", "</s>"]


def make_maps(source: list[str] = SOURCE, written: list[str] = WRITTEN, layers: int = 2, heads: int = 3):
    """Random weights."""
    random = np.random.default_rng(0)

    def weights(queries: int, keys: int) -> np.ndarray:
        scores = random.random((layers, heads, queries, keys)) ** 4
        return scores / scores.sum(-1, keepdims=True)

    return AttentionMaps(
        source=source,
        read=["<s>", *written[:-1]],
        written=written,
        encoder=weights(len(source), len(source)),
        decoder=np.tril(weights(len(written), len(written))),
        cross=weights(len(written), len(source)),
        sentence=" ".join(source[:-1]),
        translation=" ".join(written[:-1]),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into: alignment, cross, decoder, encoder."""
    saved: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), savefig(self, *args, **kw)))
    return saved


def panels(figure: Figure) -> list:
    """The axes with weights, without the scale's."""
    return [axes for axes in figure.axes if axes.images]


def labels(axes) -> tuple[list[str], list[str]]:
    """Of the rows and of the columns."""
    return [text.get_text() for text in axes.get_yticklabels()], [text.get_text() for text in axes.get_xticklabels()]


def test_a_panel_for_each_layer_and_head_with_its_own_weights(tmp_path: Path, drawn: list[Figure]) -> None:
    maps = make_maps()
    paths = draw_attention(maps, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["alignment.png", "cross.png", "decoder.png", "encoder.png"]
    assert all(imread(path).shape[0] > 300 for path in paths)
    alignment, *of_heads = drawn
    for figure, weights in zip(of_heads, (maps.cross, maps.decoder, maps.encoder), strict=True):
        for axes, expected in zip(panels(figure), weights.reshape(6, *weights.shape[2:]), strict=True):
            np.testing.assert_allclose(axes.images[0].get_array().filled(0), expected)
            assert axes.images[0].get_clim() == (0, 1)
    (axes,) = panels(alignment)
    np.testing.assert_allclose(axes.images[0].get_array(), maps.cross[-1].mean(0))
    assert "Ein kleiner Hund läuft" in alignment.get_suptitle()


def test_rows_are_queries_and_columns_keys(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_attention(make_maps(), tmp_path)
    alignment, cross, decoder, encoder = drawn
    assert labels(panels(alignment)[0]) == (WRITTEN, SOURCE)
    # Outer panels alone are labelled: rows at the left, columns below; all have the same tokens.
    assert labels(panels(cross)[3]) == (WRITTEN, SOURCE)
    assert labels(panels(decoder)[3]) == (WRITTEN, ["<s>", *WRITTEN[:-1]])
    assert labels(panels(encoder)[3]) == (SOURCE, SOURCE)
    assert [axes.get_title() for axes in panels(cross)] == ["head 1", "head 2", "head 3", "", "", ""]
    assert not panels(cross)[1].yaxis.get_tick_params()["labelleft"]


def test_what_the_decoder_can_not_see_is_not_drawn_as_a_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_attention(make_maps(), tmp_path)
    for axes in panels(drawn[2]):
        hidden = np.ma.getmaskarray(axes.images[0].get_array())
        assert (hidden == np.triu(np.ones_like(hidden), 1)).all()


def test_a_recurrent_model_has_one_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    maps = dataclasses.replace(make_maps(layers=1, heads=1), encoder=None, decoder=None)
    assert [path.name for path in draw_attention(maps, tmp_path)] == ["alignment.png"]
    assert drawn[0].get_suptitle().startswith("Cross-attention\n")


@pytest.mark.parametrize(("source", "target"), [(2, 2), (2, 40), (70, 3)])
def test_any_length_can_be_drawn(tmp_path: Path, drawn: list[Figure], source: int, target: int) -> None:
    tokens = [f"token{i}" for i in range(80)]
    draw_attention(make_maps(tokens[:source], tokens[:target], layers=1, heads=4), tmp_path)
    for figure in drawn:
        assert 4 < figure.get_figwidth() < 30
        sizes = {text.get_fontsize() for text in panels(figure)[0].get_yticklabels()}
        assert min(sizes) >= attention_figures.MIN_POINTS


def test_dollars_are_no_mathematics_and_letters_without_a_font_have_their_number(
    tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine that has matplotlib's own fonts alone, of which STIXGeneral has the second letter.
    entries = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    source = ["$x^2$", "ᶁ", "中文", "Käse", "$", "\\frac", "</s>"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_attention(make_maps(source, WRITTEN, layers=1, heads=1), tmp_path)
    expected = ["$x^2$", "ᶁ", "U+4E2DU+6587", "Käse", "$", "\\frac", "</s>"]
    assert labels(panels(drawn[0])[0])[1] == expected
    assert "U+4E2DU+6587" in drawn[0].get_suptitle()
