"""The sections of a report page, each a function of its data; None where there is nothing to show."""

import math
import shlex
from typing import Any

import numpy as np

from zoo.analysis import pictures
from zoo.analysis.page import charts
from zoo.analysis.page.charts import Axis, Series
from zoo.analysis.page.collect import PageData, precision_recall_curve, roc_curve
from zoo.analysis.page.html import Markup, element, picture, scrolling, table
from zoo.analysis.visualise import first_layer_filters
from zoo.fonts import isolate
from zoo.inference.intervals import format_interval
from zoo.inference.metrics import BINS
from zoo.models import count_parameters
from zoo.text import counted, is_finite

MAX_CONFUSION = 20  # classes of which the whole confusion matrix is shown
MAX_CLASS_ROWS = 60  # rows of the per-class table
MAX_CURVES = 10  # classes with curves of their own
MAX_CLASS_COUNTS = 100
MAX_FILTERS = 96
THUMBNAIL = 80  # CSS pixels of the longer side of a picture
STORED = 160  # pixels of the longer side of a stored picture


def percent(value: float | None, digits: int = 2) -> str:
    """Format a share, "-" for an unknown one."""
    return "–" if value is None or not is_finite(value) else f"{100 * value:.{digits}f} %"


def summary(data: PageData) -> Markup:
    """Return the tiles with the results, and a line on what was evaluated."""
    result, card = data.evaluation.result, data.checkpoint.card
    wrong = round(result.examples * (1 - result.accuracy))
    interval = format_interval(result.accuracy, result.examples)
    tiles = [
        ("accuracy", percent(result.accuracy), f"{interval}, {wrong:,} wrong of {result.examples:,}"),
        ("loss", f"{result.loss:.4f}", "cross-entropy, nats"),
        ("macro F1", percent(result.macro_f1), f"{len(card.classes):,} classes"),
        ("ROC-AUC", percent(result.roc_auc), "macro, one against the rest"),
        ("calibration error", percent(result.ece), f"{BINS} bins"),
    ]
    height, width = card.preprocess.size
    about = (
        f"{card.model} with {count_parameters(data.checkpoint.variables):,} parameters, {height}×{width} pixels; "
        f"{data.evaluation.split} split of {data.dataset.name}."
    )
    notes = [element("li", note) for note in result.notes]
    return element(
        "div",
        element("dl", [element("div", element("dt", name), element("dd", value, element("small", more)))
                       for name, value, more in tiles], class_="tiles"),
        element("p", about, class_="soft"),
        element("ul", notes, class_="plain soft") if notes else None,
    )  # fmt: skip


def training(data: PageData) -> Markup | None:
    """Return the curves of a run, its time and its throughput."""
    if data.run is None:
        return None
    history = data.run.history
    shown = [chart for chart in (_curve(data, "loss"), _curve(data, "accuracy")) if chart is not None]
    rows = []
    for row in data.run.timing:
        first, last = row["steps"]
        rows.append(
            (
                f"steps {first:,} to {last:,}",
                _duration(row["seconds"]),
                f"{row['images_per_second']:,.1f}",
                row["device"],
            )
        )
    steps = history[-1]["step"] if history else 0
    return element(
        "div",
        element("p", f"{data.run.stopped}; {steps:,} steps, best checkpoint at step {data.run.best_step:,}."),
        element("div", shown, class_="charts") if shown else None,
        element("h3", "Time and throughput") if rows else None,
        table("Sessions of this run", ("session", "time", "images per second", "device"), rows) if rows else None,
    )


def _curve(data: PageData, name: str) -> Markup | None:
    """Return the chart of loss or accuracy over the epochs."""
    assert data.run is not None
    unit = 100.0 if name == "accuracy" else 1.0
    by_epoch = all(row.get("epoch") is not None for row in data.run.history)
    series = []
    for colour, split in enumerate(("train", "validation")):
        rows = [row for row in data.run.history if _finite(row.get(f"{split}_{name}"))]
        if not rows:
            continue
        x = [row["epoch"] if by_epoch else row["step"] for row in rows]
        best = [i for i, row in enumerate(rows) if row["step"] == data.run.best_step and split == "validation"]
        series.append(Series(split, x, [unit * row[f"{split}_{name}"] for row in rows], colour, *best[:1]))
    if not series:
        return None
    values = [value for one in series for value in one.y]
    places = [value for one in series for value in one.x]
    log = name == "loss" and min(values) > 0 and max(values) > 30 * min(values)
    low, high = (
        (min(values) / 1.2, max(values) * 1.2) if log
        else charts.span(values, floor=0.0, ceiling=100.0 if name == "accuracy" else None)
    )  # fmt: skip
    x_axis = Axis("epoch" if by_epoch else "step", *(charts.span(places, floor=0.0)))
    title = "accuracy (%)" if name == "accuracy" else "loss"
    last = "; ".join(f"{one.name} from {one.y[0]:.4g} to {one.y[-1]:.4g}" for one in series)
    chart = charts.line_chart(f"{title} during training: {last}", series, x_axis, Axis(title, low, high, log=log))
    return element("figure", chart, element("figcaption", f"{title.capitalize()}; the dot is the best checkpoint."))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and is_finite(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def confusion(data: PageData) -> Markup:
    """Return the confusion matrix, or its picture for many classes."""
    counts, names = np.asarray(data.evaluation.result.confusion, np.int64), data.checkpoint.card.classes
    support = np.maximum(counts.sum(1, keepdims=True), 1)
    caption = "Rows are true classes, columns predictions; shaded by the share of the row"
    if len(counts) > MAX_CONFUSION:
        shade = 255 - np.sqrt(counts / support) * 255
        sheet = np.repeat(shade.round().astype(np.uint8)[..., None], 3, axis=-1)
        side = min(max(len(counts), 320), 640)
        sheet = pictures.enlarge(sheet, side)
        alt = f"Confusion matrix of {len(counts):,} classes; dark cells are frequent"
        return element("figure", picture(pictures.data_uri(sheet), alt, side, side), element("figcaption", caption))
    head = element("tr", element("th", "true ╲ predicted", scope="col"), [element("th", n, scope="col") for n in names])
    body = []
    for i, name in enumerate(names):
        cells = []
        for value in counts[i]:
            heat = math.ceil(10 * math.sqrt(value / support[i, 0])) if value else 0
            cells.append(element("td", f"{value:,}", class_=f"h{heat}" if value else "none"))
        body.append(element("tr", element("th", name, scope="row"), cells))
    content = element("table", element("caption", caption), element("thead", head), element("tbody", body),
                      class_="confusion")  # fmt: skip
    return scrolling("Confusion matrix", content)


def classes(data: PageData) -> Markup:
    """Return precision, recall and F1 of every class, or of the worst of many."""
    rows = [row for row in data.evaluation.result.per_class if row.support] or list(data.evaluation.result.per_class)
    caption = "Precision, recall and F1"
    if len(rows) > MAX_CLASS_ROWS:
        caption = f"The {MAX_CLASS_ROWS} of {len(rows):,} classes with the lowest F1"
        rows = sorted(rows, key=lambda row: row.f1)[:MAX_CLASS_ROWS]
    cells = [(row.name, *map(percent, (row.precision, row.recall, row.f1)), f"{row.support:,}") for row in rows]
    return table(caption, ("class", "precision", "recall", "F1", "images"), cells)


def pairs(data: PageData) -> Markup:
    """Return the most frequent mistakes with pictures."""
    names = data.checkpoint.card.classes
    if not data.pairs:
        return element("p", "No image of this split was classified wrongly.")
    items = []
    for true, predicted, count, images in data.pairs:
        text = f"{isolate(names[true])} taken for {isolate(names[predicted])}"
        shown = [_thumbnail(data, image, f"{text}, example {n}", 72) for n, image in enumerate(images, 1)]
        number = f"{count:,} image{'s' if count > 1 else ''}"
        items.append(element("li", element("h3", text), element("div", shown, class_="strip"),
                             element("p", number, class_="soft")))  # fmt: skip
    return element("ul", items, class_="grid")


def mistakes(data: PageData) -> Markup:
    """Return the wrong predictions of the highest probability, with Grad-CAM of both classes."""
    names = data.checkpoint.card.classes
    if not data.mistakes:
        return element("p", "No image of this split was classified wrongly.")
    channels = data.checkpoint.card.preprocess.channels
    items = []
    for mistake in data.mistakes:
        true, predicted = isolate(names[mistake.label]), isolate(names[mistake.prediction])
        text = f"{true} taken for {predicted}"
        shown = [element("figure", _thumbnail(data, mistake.pixels, f"{mistake.name}: {text}"),
                         element("figcaption", "image"))]  # fmt: skip
        for which, name in enumerate((predicted, true)):
            if mistake.maps is None:
                break
            overlay = pictures.overlay(mistake.pixels, mistake.maps[which], channels)
            alt = f"{mistake.name}: Grad-CAM of {name}"
            shown.append(element("figure", _picture(overlay, alt), element("figcaption", f"for {name}")))
        items.append(element(
            "li", element("h3", text), element("div", shown, class_="strip"),
            element("p", f"{predicted} {percent(mistake.probability, 1)}, {true} "
                         f"{percent(mistake.true_probability, 1)}. ", element("span", mistake.name, class_="soft")),
        ))  # fmt: skip
    where = f" Beside each image, Grad-CAM at {data.stage} shows where the evidence for each class lies."
    return element(
        "div",
        element("p", "The wrong predictions with the highest probability; some may be wrong labels."
                     + (where if data.stage else "")),
        element("ul", items, class_="grid"),
    )  # fmt: skip


def _thumbnail(data: PageData, pixels: np.ndarray, alt: str, side: int = THUMBNAIL) -> Markup:
    return _picture(pictures.to_rgb(pixels, data.checkpoint.card.preprocess.channels), alt, side)


def _picture(image: pictures.Picture, alt: str, side: int = THUMBNAIL) -> Markup:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    kind = "pixels" if max(height, width) <= 64 else "photo"
    uri = pictures.data_uri(image, STORED)
    return picture(uri, alt, max(round(width * scale), 1), max(round(height * scale), 1), kind)


def reliability(data: PageData) -> Markup:
    """Return accuracy by confidence, and the number of images by confidence."""
    confidence, correct = data.evaluation.confidence, data.evaluation.predictions == data.evaluation.labels
    bins = np.clip(np.ceil(confidence.astype(np.float64) * BINS) - 1, 0, BINS - 1).astype(int)
    counts = np.bincount(bins, minlength=BINS)
    accuracy = np.bincount(bins, weights=correct, minlength=BINS) / np.maximum(counts, 1)
    edges = [(i / BINS, (i + 1) / BINS) for i in range(BINS)]
    share = Axis("confidence", 0.0, 1.0)
    bars = [(*edges[i], float(accuracy[i]), 0) for i in range(BINS) if counts[i]]
    ece = percent(data.evaluation.result.ece)
    left = charts.bar_chart(f"Reliability diagram: accuracy by confidence; calibration error {ece}", bars, share,
                            Axis("accuracy", 0.0, 1.0), diagonal=True)  # fmt: skip
    shares = counts / counts.sum()
    many = [(*edges[i], float(shares[i]), 1) for i in range(BINS) if counts[i]]
    high = Axis("share of images", 0.0, max(float(shares.max()) * 1.05, 1e-6), lambda value: f"{100 * value:g} %")
    right = charts.bar_chart(
        f"Confidence: {percent(float(shares[-1]), 1)} of the images have more than {edges[-1][0]:.2f}",
        many,
        share,
        high,
    )
    below = "The bars of a calibrated network end at the dashed line."
    return element(
        "div",
        element("figure", left, element("figcaption", f"Accuracy by confidence. {below} Calibration error {ece}.")),
        element("figure", right, element("figcaption", "Share of images by confidence.")),
        class_="charts",
    )


def curves(data: PageData) -> Markup:
    """Return ROC and precision-recall curves: of every class, or of all together if there are many."""
    scores, labels = data.evaluation.scores, data.evaluation.labels
    if scores is None or not np.isfinite(scores).all():
        return element("p", "Not drawn: the table of probabilities is too large or not finite.")
    names = data.checkpoint.card.classes
    occurring = [k for k in range(len(names)) if 0 < (labels == k).sum() < len(labels)]
    if not occurring:
        return element("p", "Undefined: all images are of one class.")
    if len(names) <= MAX_CURVES:
        tests = [(names[k], scores[:, k], labels == k) for k in occurring]
    else:
        everyone = np.zeros(scores.shape, bool)
        everyone[np.arange(len(labels)), labels] = True
        tests = [("all classes together", scores.ravel(), everyone.ravel())]
    roc, recall, parts = [], [], []
    for colour, (name, values, positive) in enumerate(tests):
        false, true = roc_curve(values, positive)
        reached, precision, average = precision_recall_curve(values, positive)
        roc.append(Series(name, false.tolist(), true.tolist(), colour))
        recall.append(Series(f"{name} ({100 * average:.2f} %)", reached.tolist(), precision.tolist(), colour))
        parts.append(f"{name} {percent(average)}")
    area = percent(data.evaluation.result.roc_auc)
    widest, lowest = _corner(roc)
    left = charts.line_chart(
        f"ROC curves; mean area {area}", roc, Axis("false positive rate", 0.0, widest),
        Axis("true positive rate", lowest, 1.0), diagonal=widest == 1,
    )  # fmt: skip
    least = _floor(recall)
    right = charts.line_chart(
        f"Precision-recall curves; average precision: {', '.join(parts)}", recall,
        Axis("recall", 0.5 if least else 0.0, 1.0), Axis("precision", least, 1.0),
    )  # fmt: skip
    closer = " Only the corner is drawn."
    return element(
        "div",
        element("figure", left, element("figcaption", f"ROC, one class against the rest; mean area {area}."
                                        + closer * (widest < 1))),
        element("figure", right, element("figcaption", "Precision and recall, with the average precision."
                                         + closer * (least > 0))),
        class_="charts",
    )  # fmt: skip


def _corner(series: list[Series]) -> tuple[float, float]:
    """Return (largest false, lowest true positive rate) to draw: the corner in which all curves rise, or (1, 0)."""
    for widest in (0.02, 0.1):
        heights = [max(y for x, y in zip(one.x, one.y, strict=True) if x <= widest) for one in series]
        starts = [max(y for x, y in zip(one.x, one.y, strict=True) if x <= widest / 20) for one in series]
        if min(heights) > 0.98:
            return widest, max(math.floor(20 * min(starts) - 1) / 20, 0.0)
    return 1.0, 0.0


def _floor(series: list[Series]) -> float:
    """Return the lowest precision to draw: 0, or a higher one that all curves keep up to a recall of 95 %."""
    kept = min((y for one in series for x, y in zip(one.x, one.y, strict=True) if 0.1 < x < 0.95), default=0.0)
    return max(math.floor(20 * kept - 1) / 20, 0.0) if kept > 0.6 else 0.0


def augmentation(data: PageData) -> Markup | None:
    """Return training images as training saw them."""
    augment = (data.checkpoint.card.recipe or {}).get("augment") or []
    if not augment or not len(data.dataset.splits.get("train", ())):
        return None
    from zoo.data.inspect.contact_sheet import augmented_images

    preprocess = data.checkpoint.card.preprocess
    labels, images = augmented_images(data.dataset, preprocess, augment, rows=4, columns=7)
    channels = "L" if preprocess.channels == "L" else "RGB"
    rows = []
    for label, forms in zip(labels, images, strict=True):
        name = data.dataset.class_names[label]
        shown = [
            _picture(pictures.to_rgb(form, channels), f"{name}, {f'epoch {n}' if n else 'original'}", 84)
            for n, form in enumerate(forms)
        ]
        rows.append(element("li", element("h3", name), element("div", shown, class_="strip")))
    operations = element("code", "; ".join(augment))
    return element(
        "div", element("p", "The original, then its form in six epochs: ", operations),
        element("ul", rows, class_="grid wide"),
    )  # fmt: skip


def filters(data: PageData) -> Markup:
    """Return the filters of the first layer."""
    checkpoint = data.checkpoint
    kernels = first_layer_filters(checkpoint.model, checkpoint.variables, checkpoint.card.preprocess.input_shape)
    shown = [pictures.enlarge(part, 44) for part in pictures.filter_pictures(kernels[:MAX_FILTERS])]
    sheet = pictures.mosaic(shown, min(len(shown), 16), gap=4)
    size = "×".join(map(str, kernels.shape[1:]))
    number = f"{len(kernels):,}" if len(shown) == len(kernels) else f"{len(shown):,} of {len(kernels):,}"
    text = f"{number} filters of {size}" + ("." if kernels.shape[-1] == 3 else "; red is positive, blue negative.")
    width = min(sheet.shape[1], 900)
    uri = pictures.data_uri(sheet)
    return element(
        "figure", picture(uri, f"Filters of the first layer: {text}", width, width * sheet.shape[0] // sheet.shape[1]),
        element("figcaption", text),
    )  # fmt: skip


def data_summary(data: PageData) -> Markup:
    """Return counts, sizes, duplicates and what was left out."""
    facts, dataset = data.survey, data.dataset
    splits = list(dataset.splits)
    counts = {name: np.bincount(split.labels, minlength=dataset.num_classes) for name, split in dataset.splits.items()}
    rows: list[Any] = [
        (name, *(f"{counts[split][k]:,}" for split in splits))
        for k, name in enumerate(dataset.class_names[:MAX_CLASS_COUNTS])
    ]
    rows.append(("all classes", *(f"{len(dataset.splits[split]):,}" for split in splits)))
    lines = [str(note) for note in dataset.notes]
    if facts is not None:
        if sizes := facts["sizes"]:
            smallest, median, largest = (f"{size[1]}×{size[0]}" for size in
                                         (sizes["smallest"], sizes["median"], sizes["largest"]))  # fmt: skip
            several = f"{smallest} to {largest} pixels, median {median}"
            lines.insert(0, f"sizes: {several if smallest != largest else f'all {median} pixels'}")
        repeated = (
            counted(facts["repeated"], "image repeats", "images repeat") if facts["repeated"] else "no image repeats"
        )
        lines.append(f"{repeated} another one of the same split")
        lines += [*facts["leaks"], *facts["contradictions"][:5], *facts["advice"]]
    lines = list(dict.fromkeys(lines))
    left_out = [element("li", line) for line in dataset.left_out[:50]]
    title = f"Left out: {len(dataset.left_out):,} images that cannot be read"
    return element(
        "div",
        table(f"Images of {dataset.name} by class and split", ("class", *splits), rows),
        element("ul", [element("li", line) for line in lines], class_="plain"),
        element("details", element("summary", title), element("ul", left_out, class_="plain")) if left_out else None,
    )


def reproduction(data: PageData) -> Markup:
    """Return the command, the configuration and the versions."""
    card = data.checkpoint.card
    command = card.command
    parts = []
    if command:
        parts += [element("p", "The command that trained this checkpoint:"), element("pre", command)]
    if data.run is not None:
        again = f"zoo train --config {shlex.quote(str(data.run.folder / 'config.json'))} --workdir NEW"
        parts += [element("p", "The same configuration again, in another folder:"), element("pre", again)]
    recipe = [(name, _plain(value)) for name, value in (card.recipe or {}).items()]
    fields = [(name, _plain(value)) for name, value in card.fields.items()]
    preprocess = [(name, _plain(value)) for name, value in vars(card.preprocess).items()]
    for title, rows in (("Recipe", recipe), (f"Fields of {card.model}", fields), ("Preprocessing", preprocess),
                        ("Versions", list(card.versions.items()))):  # fmt: skip
        if rows:
            inside = table(title, ("name", "value"), rows, numbers=False)
            parts.append(element("details", element("summary", title), inside))
    return element("div", parts)


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


#: (id, title, function) in the order of the page.
SECTIONS = (
    ("summary", "Results", summary),
    ("training", "Training", training),
    ("confusion", "Confusion matrix", confusion),
    ("classes", "Classes", classes),
    ("pairs", "Most confused pairs", pairs),
    ("mistakes", "Most confident mistakes", mistakes),
    ("reliability", "Reliability", reliability),
    ("curves", "ROC and precision-recall", curves),
    ("augmentation", "Augmented images", augmentation),
    ("filters", "First-layer filters", filters),
    ("data", "Data", data_summary),
    ("reproduction", "Configuration", reproduction),
)
