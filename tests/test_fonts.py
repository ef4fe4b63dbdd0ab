"""Names in any script on pictures: a font of the system, or spelt out."""

import numpy as np
import pytest
from PIL import Image

from zoo import fonts
from zoo.data.inspect.grid import Cell, Line, draw_grid
from zoo.training import plots


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    fonts._search.cache_clear()
    yield
    fonts._search.cache_clear()


@pytest.fixture
def symbol():
    """A letter that DejaVu Sans lacks and another font that comes with matplotlib has."""
    stix = next(font for font in fonts._installed() if font.family == "STIXGeneral")
    known = fonts._letters(str(fonts.default_file()), 0)
    return chr(min(code for code in fonts._letters(stix.file, 0) if code not in known and chr(code).isprintable()))


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("猫", "U+732B"),
        ("ねこ", "neko"),
        ("고양이", "goyangi"),
        ("cat 猫", "cat U+732B"),
        ("क", "ka"),
        ("café, кошка, חתול, قطة", "café, кошка, חתול, قطة"),
        ("a\u200bb\n\x07", "a\u200bb\n\x07"),
    ],
)
def test_names_without_a_font_are_spelt_out(no_fonts, name, spelling):
    assert fonts.spell_out(name) == spelling and fonts.fonts_for(name) == ()
    assert fonts.has_all(name) == (name == spelling)


def test_a_letter_of_another_installed_font_is_drawn_with_it(symbol):
    assert not fonts.has_all(symbol) and fonts.spell_out(symbol) == symbol
    assert fonts.fonts_for(symbol)[0].family not in ("DejaVu Sans", "") and len(fonts.fonts_for(f"ab{symbol}")) == 1
    figure = plots.new_figure(2, 2)
    text = figure.text(0, 0, f"ab{symbol}")
    plots.choose_fonts(figure)
    assert text.get_text() == f"ab{symbol}" and fonts.fonts_for(symbol)[0].family in text.get_fontfamily()
    assert [text.get_text() for text in figure.texts] == [f"ab{symbol}"]


@pytest.mark.parametrize(
    ("name", "family", "spelling"),
    [
        ("dog", None, "dog"),
        ("🐶", "Emoji", "🐶"),
        ("dog 🐶", None, "dog [dog face]"),  # a font of emoji has no Latin letters
        ("猫 → cat", "Chinese", "猫 → cat"),
        ("猫🐶", "Chinese", "猫[dog face]"),
        ("猫 ж", None, "U+732B ж"),
    ],
)
def test_a_single_font_has_all_letters_that_are_not_spelt_out(monkeypatch, name, family, spelling):
    latin = frozenset(range(33, 127))
    letters = {
        str(fonts.default_file()): latin | {ord("ж"), ord("→")},
        "emoji": frozenset({ord("🐶"), ord("1")}),
        "chinese": latin | {ord("猫"), ord("→")},
    }
    monkeypatch.setattr(
        fonts, "_installed", lambda: (fonts.Font("Emoji", "emoji", 0), fonts.Font("Chinese", "chinese", 0))
    )
    monkeypatch.setattr(fonts, "_letters", lambda file, face: letters[file])
    fonts._search.cache_clear()
    font, text = fonts.choose_one(name)
    fonts._search.cache_clear()
    assert (font.family if font else None, text) == (family, spelling)


def test_labels_of_axes_are_spelt_out_with_advice(no_fonts, tmp_path):
    figure = plots.new_figure(3, 3)
    axes = figure.subplots()
    axes.set_xticks([0, 1], ["ねこ", "dog"], fontsize=7)
    axes.set_title("猫")
    plots.choose_fonts(figure)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["neko", "dog"]
    assert {label.get_fontsize() for label in axes.get_xticklabels()} == {7} and axes.get_title() == "U+732B"
    assert [text.get_text() for text in figure.texts] == [fonts.ADVICE]
    plots.choose_fonts(figure)  # changes nothing
    assert len(figure.texts) == 1
    plots.draw_confusion(np.eye(3, dtype=int), ["猫", "いぬ", "bird"], tmp_path / "a.png", title="ねこ")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"


def test_pictures_of_latin_names_stay_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "_search", lambda letters: pytest.fail("looked for fonts") if letters else ((), letters))
    plots.draw_confusion(np.eye(2, dtype=int), ["café", "кошка"], tmp_path / "a.png")
    draw_grid([Cell([np.zeros((4, 4, 3), np.uint8)], [Line("dog", " 90 %")])], ["heading"], tmp_path / "b.png")


def test_what_follows_a_name_from_right_to_left_stays_right_of_it(no_fonts):
    assert fonts.isolate("dog") == "dog" and fonts.isolate("猫") == "猫"
    assert fonts.isolate("חתול").strip("\u200e") == "חתול" and fonts.isolate("قطة")[-1] == "\u200e"
