"""The report page: its structure, escapes and figures, without a browser; and in Chromium behind a marker."""

import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from helpers import random_images, run_command
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

import zoo
from zoo.analysis.page import charts, collect
from zoo.analysis.page.html import Markup, document, element, scrolling
from zoo.analysis.page.style import STYLE
from zoo.analysis.report import report, write_run_page
from zoo.checkpoint import Card
from zoo.checkpoint.calibration import Calibration
from zoo.data.images.preprocess import Preprocess
from zoo.training import report as training_report

HOSTILE = '<img src=x onerror="alert(1)">&\'"</script>'
VOID = {"img", "meta", "br", "hr", "input", "link"}


class Outline(HTMLParser):
    """The parts of a page that its tests look at. Raises for elements that are not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.images, self.headings, self.addresses, self.tables = [], [], [], [], [], []
        self.attributes, self.charts, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.attributes += [(tag, name) for name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action", "data") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.charts.append(values)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append({"scopes": 0, "caption": False})
        if tag == "th":
            assert values.get("scope") in ("col", "row")
            self.tables[-1]["scopes"] += 1
        if tag == "caption":
            self.tables[-1]["caption"] = True
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on a folder of images, two of whose classes look alike; class and file names hold markup."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    names = (HOSTILE.replace("/", "∕"), "cat", "dog")  # a slash cannot be in a file name
    for k, name in enumerate(names):
        for split, count in (("train", 12), ("validation", 4), ("test", 8)):
            (root / "data" / split / name).mkdir(parents=True)
            for n in range(count):
                image = rng.normal(60 + 120 * (k == 2), 25, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / "data" / split / name / f"{n}<b>.png")
    (root / "data" / "test" / "cat" / "broken.png").write_bytes(b"no image")
    fitted = zoo.fit(
        "resnet20", str(root / "data"), fields={"blocks": (1,), "width": 8}, epochs=2, batch_size=12, quiet=True,
        image_size=16, augment=("flip",), workdir=root / "run",
    )  # fmt: skip
    return root, fitted


@pytest.fixture(scope="module")
def page(run):
    root, fitted = run
    return write_run_page(root / "run", fitted, zoo.open_dataset(str(root / "data")))


def test_the_page_is_whole_and_accessible(page):
    text = page.read_text(encoding="utf-8")
    outline = Outline(text)
    assert text.startswith("<!DOCTYPE html>") and '<html lang="en">' in text and "<main>" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert len(outline.ids) == len(set(outline.ids))
    assert all(image.get("alt", "").strip() for image in outline.images) and len(outline.images) > 10
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in outline.charts) and len(outline.charts) == 6
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert all(table["caption"] and table["scopes"] > 2 for table in outline.tables)
    for link in (address for address in outline.addresses if address.startswith("#")):
        assert link[1:] in outline.ids
    assert text.count('tabindex="0"') == text.count('role="region"') == len(outline.tables)


def test_the_page_needs_nothing_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    outline = Outline(text)
    assert all(address.startswith(("data:image/", "#")) for address in outline.addresses)
    assert "default-src &#x27;none&#x27;" in text and "@import" not in text and "url(" not in text
    assert not [name for _, name in outline.attributes if name.startswith("on") or name == "style"]
    assert not re.search(r"<(script|iframe|object|embed|form|base|link)\b", text)
    assert page.stat().st_size < 1_000_000


def test_names_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<b>" not in text
    words = " ".join(Outline(text).words)
    assert HOSTILE.replace("/", "∕") in words and "<b>.png" in words


def test_the_page_shows_what_the_evaluation_says(run, page):
    root, fitted = run
    words = " ".join(Outline(page.read_text(encoding="utf-8")).words)
    result = zoo.evaluate(fitted, str(root / "data"))
    assert f"{100 * result.accuracy:.2f} %" in words and f"{result.loss:.4f}" in words
    low, high = (f"{100 * end:.1f}" for end in result.accuracy_interval)
    assert f"95 % CI {low} to {high} %" in words
    assert "broken.png" in words and "zoo train --config" in words and "flip" in words
    for title in ("Training", "Most confident mistakes", "Reliability", "Augmented images", "Data", "Configuration"):
        assert title in words
    data = collect.collect(fitted, zoo.open_dataset(str(root / "data")), title="t", split="test")
    assert data.evaluation.result.confusion == result.confusion
    assert data.evaluation.result.ece == pytest.approx(result.ece, abs=1e-6)
    for mistake in data.mistakes:
        assert mistake.label != mistake.prediction and mistake.probability >= mistake.true_probability
        assert mistake.maps.shape == (2, 16, 16)
    confidences = [mistake.probability for mistake in data.mistakes]
    assert confidences == sorted(confidences, reverse=True) and len(confidences) > 0
    assert sum(count for _, _, count, _ in data.pairs) <= sum(map(sum, result.confusion))


def test_logits_far_apart_give_the_results_of_zoo_eval():
    """Their probabilities are 0 and 1 in float32: they rank no classes, and the log of 0 is no loss."""
    images, labels = random_images(60, 8, 8)
    model = zoo.create("softmax", image_size=8, num_classes=3)
    rng = np.random.default_rng(0)
    plain = zoo.init(model, 0, (8, 8, 1))
    variables = jax.tree.map(lambda leaf: rng.normal(0, 300, leaf.shape).astype(np.float32), plain)
    preprocess = Preprocess(size=(8, 8), resize=(8, 8), channels="L", mean=(0.5,), std=(0.25,))
    dataset = zoo.from_arrays(train=(images, labels), test=(images, labels))
    fields = {"image_size": 8, "num_classes": 3}
    for calibration in (None, Calibration(1.5, "validation", 60, 2.0, 1.0, 0.2, 0.1, -1e9, 0.95)):
        card = Card("softmax", fields, ("0", "1", "2"), preprocess, calibration=calibration)
        network = zoo.Checkpoint(model, variables, card)
        page, result = collect.evaluate_scores(network, dataset.splits["test"], "test"), zoo.evaluate(network, dataset)
        assert result.loss > 100 and page.result.loss == pytest.approx(result.loss, rel=1e-4)
        assert page.result.confusion == result.confusion and page.result.ece == pytest.approx(result.ece, abs=1e-4)


def test_a_configuration_that_is_none_is_named(run, tmp_path):
    root, _ = run
    for name in ("config.json", "results.json", "metrics.jsonl", "timing.jsonl"):
        (tmp_path / name).write_bytes((root / "run" / name).read_bytes())
    assert collect.read_run(tmp_path).config.model == "resnet20"
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: is not the configuration"):
        collect.read_run(tmp_path)


def test_a_checkpoint_without_a_run_and_with_other_data(run, tmp_path, capsys):
    root, _ = run
    out = tmp_path / "page.html"
    code, text, _ = run_command(capsys, "report", root / "run", "--data", root / "data", "-o", out)
    assert code == 0 and str(out) in text
    assert "Training" in " ".join(Outline(out.read_text(encoding="utf-8")).words)
    code, _, err = run_command(capsys, "report", root / "run", "--data", root / "data", "--split", "nothing", "-o", out)
    assert code == 2 and "nothing" in err.splitlines()[-1]
    code, _, err = run_command(capsys, "report", tmp_path, "-o", out)
    assert code == 2 and err.count("\n") == 1
    written = (root / "run" / "report.html").read_bytes()
    try:
        (root / "run" / "report.html").write_text("old")
        code, text, _ = run_command(capsys, "report", root / "run")
        assert code == 0 and str(root / "run" / "report.html") in text
        assert len((root / "run" / "report.html").read_bytes()) > 1000
    finally:
        (root / "run" / "report.html").write_bytes(written)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((root / "run" / "config.json").read_text())
    with pytest.raises(ValueError, match="no best checkpoint"):
        report(tmp_path / "half", "digits")


def test_a_page_that_cannot_be_written_is_named_before_anything_is_evaluated(tmp_path):
    evaluated = []
    with pytest.raises(ValueError, match="no such folder"):
        report("lenet5-mnist", "digits", tmp_path / "nowhere" / "page.html", on_batch=evaluated.append)
    assert not evaluated


def test_a_failure_to_write_the_page_fails_no_run(run):
    root, fitted = run
    said: list[str] = []

    class Plan:
        folder, dataset = root / "other", None

        @staticmethod
        def place():
            return str(root / "other")

    def broken(*_):
        raise RuntimeError("no ink\nsecond line")

    training_report.write_page(Plan, fitted, broken, said.append)
    assert said == [f"The page of the run was not written: no ink. Try `zoo report {root / 'other'}`"]


def test_curves_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.3
    scores = np.round(rng.normal(positive, 1.0), 1)  # with ties
    false, true = collect.roc_curve(scores, positive, points=10_000)
    expected = roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])
    thin = collect.roc_curve(scores, positive, points=50)
    assert len(thin[0]) <= 50 and thin[0][0] == 0 and thin[1][-1] == 1
    assert np.trapezoid(thin[1], thin[0]) == pytest.approx(roc_auc_score(positive, scores), abs=2e-3)
    recall, precision, average = collect.precision_recall_curve(scores, positive, points=10_000)
    theirs = precision_recall_curve(positive, scores)
    np.testing.assert_allclose(precision, theirs[0][:-1][::-1])
    np.testing.assert_allclose(recall, theirs[1][:-1][::-1])
    assert average == pytest.approx(average_precision_score(positive, scores))


def test_everything_but_elements_is_escaped():
    assert element("p", HOSTILE, title=HOSTILE).count("<") == 2
    assert element("p", ["a", None, element("b", "<")], hidden=True, id=None) == "<p hidden>a<b>&lt;</b></p>"
    assert isinstance(element("br"), Markup) and element("br") == "<br>"
    assert "\\x1b" in element("p", "\x1b[31m")
    assert "</title><script>" not in document("</title><script>", "", "text")


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (charts.Axis("a", 0.0, 1.0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (charts.Axis("a", 3.0, 11.0), [4, 6, 8, 10]),
        (charts.Axis("a", 0.02, 3.0, log=True), [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]),
        (charts.Axis("a", 2.0, 2.0), [2]),
    ],
)
def test_ticks_are_round(axis, expected):
    assert axis.ticks() == pytest.approx(expected)
    assert all(0 <= axis.position(tick) <= 1 for tick in axis.ticks())


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_page_in_chromium(page, width, dark):
    from chromium import Page

    with Page(width, 844, dark=dark, mobile=width < 500) as browser:
        browser.open(page.as_uri())
        assert browser.problems() == [] and browser.requests() == [page.as_uri()]
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        ground, ink = (
            [int(part) for part in re.findall(r"\d+", browser.evaluate(f"getComputedStyle(document.body).{name}"))[:3]]
            for name in ("backgroundColor", "color")
        )
        assert (sum(ground) < sum(ink)) == dark and abs(sum(ground) - sum(ink)) > 400
        browser.press("Tab", 9)
        assert browser.evaluate("document.activeElement.textContent") == "Skip to the results"
        reached = set()
        for _ in range(60):
            browser.press("Tab", 9)
            reached.add(browser.evaluate("document.activeElement.tagName"))
        assert {"A", "SUMMARY"} <= reached and "DIV" in reached
        names = browser.send("Accessibility.getFullAXTree")["nodes"]
        roles = [node["role"]["value"] for node in names if not node.get("ignored")]
        assert {"heading", "main", "navigation", "table", "image", "region"} <= set(roles)


@pytest.mark.browser
def test_a_table_that_goes_on_beyond_the_edge_is_shaded_there(tmp_path):
    from chromium import Page

    cells = Markup("<tr>" + "<td>123</td>" * 30 + "</tr>")
    body = element("section", scrolling("wide", element("table", cells)), scrolling("narrow", element("table", "")))
    (tmp_path / "page.html").write_text(document("Tables", STYLE, body), "utf-8")
    with Page(390, 300, mobile=True) as browser:
        browser.open((tmp_path / "page.html").as_uri())
        box = browser.evaluate(
            "(b => [b.left, b.right, b.top])(document.querySelector('.scroll').getBoundingClientRect())"
        )
        browser.screenshot(tmp_path / "page.png", full=False)
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("L")).astype(int)
    scale = picture.shape[1] / 390
    left, right, top = (round(side * scale) for side in box)
    edge, start = picture[top + 2, right - 2], picture[top + 2, left + 2]
    assert edge < start - 30  # more to the right, nothing to the left
