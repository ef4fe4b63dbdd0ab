"""The README.md of a checkpoint: a model card with the front matter of the Hugging Face Hub, made from card.json.

Texts of a card may come from a stranger. Every one is shortened to one line and escaped, so that a class name can
neither end the front matter, nor begin a heading, a link or HTML.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.text import one_line

LIBRARY = "jax-model-zoo"
#: Stands for the name of the repository until `zoo push` knows it.
PLACEHOLDER = "hf:USER/NAME"

MAX_NAME = 120  # characters of a name
MAX_LINE = 2000  # characters of a command or a note
MAX_LISTED = 200  # classes that are listed
MAX_ROWS = 30  # classes with a row of results each

#: Identifiers of licences that the Hub knows, among those that weights and code have; others are "other".
HUB_LICENCES = (
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "openrail",
)  # fmt: skip
#: TensorFlow data set -> the same one on the Hub.
HUB_DATASETS = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet2012": "ILSVRC/imagenet-1k",
}
#: Result of a split -> (title, factor, decimals); shares are shown in percent.
COLUMNS = {
    "accuracy": ("accuracy", 100, 2),
    "top5": ("top-5", 100, 2),
    "macro_f1": ("macro F1", 100, 2),
    "roc_auc": ("ROC AUC", 1, 4),
    "loss": ("loss", 1, 4),
    "ece": ("calibration error", 100, 2),
}
#: Fields of the recipe in the order in which they are told; those that do nothing are left out.
RECIPE_FIELDS = (
    "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "warmup_epochs", "momentum", "weight_decay", "l2",
    "label_smoothing", "ema", "augment", "class_weights", "freeze", "loss", "precision", "seed",
)  # fmt: skip


def model_card(card: Mapping[str, Any], name: str = PLACEHOLDER) -> str:
    """Return the README.md of a checkpoint.

    Args:
        card: the parsed content of card.json.
        name: what loads the checkpoint, "hf:alice/flowers" on the Hub.

    Returns:
        Markdown that begins with YAML front matter.
    """
    sections = (
        _front_matter(card), _summary(card), _use(card, name), _results(card), _classes(card), _input(card),
        _training(card), _limits(card), _origin(card),
    )  # fmt: skip
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


# --- escaping --------------------------------------------------------------------------------------------------------


def code(text: Any, limit: int = MAX_NAME) -> str:
    """Return a text as inline code, in which no character has a meaning."""
    line = one_line(text, limit)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def cell(text: str) -> str:
    """Return Markdown as the cell of a table, which a "|" would end, even in code."""
    return text.replace("|", r"\|")


def prose(text: Any, limit: int = MAX_LINE) -> str:
    """Return a text as Markdown that shows its characters: no link, HTML, emphasis or list begins in it."""
    line = re.sub(r"[\\`*_\[\]<>#|~&$@!]", r"\\\g<0>", one_line(text, limit))
    line = re.sub(r"(?i)\b(www)\.|://", lambda match: f"{match[1]}\\." if match[1] else r"\://", line)
    return re.sub(r"^(?:(?=[-+=])|(\d+)(?=[.)](?:\s|$)))", lambda match: f"{match[1] or ''}\\", line)


def block(text: str, language: str) -> list[str]:
    """Return a fenced block of code."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence]


def yaml_text(text: Any) -> str:
    """Return a text as a YAML scalar in double quotes, in the spelling of JSON; control characters are escaped."""
    return json.dumps(one_line(text, MAX_NAME), ensure_ascii=False)


# --- sections --------------------------------------------------------------------------------------------------------


def _front_matter(card: Mapping[str, Any]) -> list[str]:
    task = "image-classification" if card["classes"] else "image-feature-extraction"
    lines = ["---"]
    if licence := card["licence"]:
        known = licence.lower() in HUB_LICENCES
        lines.append(f"license: {licence.lower() if known else 'other'}")
        slug = re.sub("[^a-z0-9.]+", "-", licence.lower())[:MAX_NAME].strip("-.") or "unnamed"
        lines += [] if known else [f"license_name: {yaml_text(slug)}"]
    lines += [f"library_name: {LIBRARY}", f"pipeline_tag: {task}", "tags:"]
    lines += [f"- {yaml_text(tag)}" for tag in dict.fromkeys((LIBRARY, "jax", "flax", card["model"]))]
    dataset = _hub_dataset(card)
    lines += ["datasets:", f"- {yaml_text(dataset)}"] if dataset else []
    split, result = _chief_result(card)
    accuracy = _number(result.get("accuracy"))
    if accuracy is not None and card["classes"]:
        source = _data_name(card) or "unknown"
        lines += [
            "metrics:", "- accuracy", "model-index:", f"- name: {yaml_text(card['model'])}", "  results:", "  - task:",
            f"      type: {task}", "    dataset:", f"      name: {yaml_text(source)}",
            f"      type: {yaml_text(dataset or source)}", f"      split: {split}", "    metrics:",
            "    - type: accuracy", f"      value: {accuracy:.6g}",
        ]  # fmt: skip
    return [*lines, "---"]


def _summary(card: Mapping[str, Any]) -> list[str]:
    title = f" on {prose(_data_name(card), 60)}" if _source(card) else ""
    parameters = sum(math.prod(row["shape"]) for row in card["leaves"] if row["path"].startswith("params/"))
    what = f"tells {len(card['classes']):,} classes of images apart" if card["classes"] else "gives features of images"
    lines = [f"# {prose(card['model'])}{title}", "", f"A network of {parameters:,} parameters that {what}, in JAX."]
    split, result = _chief_result(card)
    if (accuracy := _number(result.get("accuracy"))) is not None:
        images = f" of {result['examples']:,} images" if _count(result.get("examples")) else ""
        lines[-1] += f" Its accuracy on the {split} split{images} is {100 * accuracy:.2f} %."
    return lines


def _use(card: Mapping[str, Any], name: str) -> list[str]:
    call = 'checkpoint.predict("photo.jpg")[0]' if card["classes"] else "checkpoint.model"
    command = f"zoo predict {name} photo.jpg" if card["classes"] else f"zoo info {name}"
    return [
        "## Use",
        "",
        *block(f"pip install '{LIBRARY}[hub]'\n{command}\nzoo train --init {name} --data photos/   # fine-tune", "sh"),
        "",
        *block(f'import zoo\n\ncheckpoint = zoo.load("{name}")\nprint({call})', "python"),
        "",
        "Every file and array is checked against its hash on loading, and no code of this repository is executed.",
    ]


def _results(card: Mapping[str, Any]) -> list[str]:
    rows = {split: card["metrics"].get(split) for split in ("validation", "test", "published")}
    results = {split: row for split, row in rows.items() if isinstance(row, Mapping)}
    used = [key for key in COLUMNS if any(_number(row.get(key)) is not None for row in results.values())]
    if not used:
        return []
    lines = ["## Results", "", f"| split | images | {' | '.join(COLUMNS[key][0] for key in used)} |"]
    lines.append("|---" * (len(used) + 2) + "|")
    for split, row in results.items():
        images = f"{row['examples']:,}" if _count(row.get("examples")) else ""
        where = f"published ({cell(code(row['data']))})" if split == "published" and row.get("data") else split
        lines.append(f"| {where} | {images} | {' | '.join(_share(row.get(key), key) for key in used)} |")
    shares = [COLUMNS[key][0] for key in used if COLUMNS[key][1] == 100]
    lines += ["", f"In percent: {', '.join(shares)}."] if shares else []
    return [*lines, *_per_class(card)]


def _per_class(card: Mapping[str, Any]) -> list[str]:
    split, result = _chief_result(card)
    rows = _class_rows(result)
    if not 0 < len(rows) <= MAX_ROWS:
        return []
    lines = ["", f"Each class of the {split} split:", "", "| class | images | precision | recall |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        support = f"{row['support']:,}" if _count(row.get("support")) else ""
        shares = " | ".join(_share(row.get(key), "accuracy") for key in ("precision", "recall"))
        lines.append(f"| {cell(code(row['class']))} | {support} | {shares} |")
    return lines


def _classes(card: Mapping[str, Any]) -> list[str]:
    classes = card["classes"]
    if not classes:
        return []
    rest = len(classes) - MAX_LISTED
    listed = ", ".join(map(code, classes[:MAX_LISTED]))
    more = f" and {rest:,} more in card.json" if rest > 0 else ""
    return ["## Classes", "", f"In the order of the outputs: {listed}{more}."]


def _input(card: Mapping[str, Any]) -> list[str]:
    how = card["preprocess"]
    texts = {key: "x".join(map(str, how[key])) for key in ("size", "resize")}
    mean, std = (", ".join(f"{number:.4g}" for number in how[key]) for key in ("mean", "std"))
    lines = [
        "## Input",
        "",
        f"Images are resized to {texts['resize']} pixels ({how['resize_mode']}, {how['interpolation']}) and brought to "
        f"{texts['size']}, channels {how['channels']}. Of pixels in 0..1, the mean {mean} is subtracted, and the "
        f"result divided by {std}.",
    ]
    if how.get("polarity"):
        lines[-1] += f" Drawings of the other polarity than {how['polarity']} are inverted."
    return [*lines, "", "The commands and functions above do all of it."]


def _training(card: Mapping[str, Any]) -> list[str]:
    data, recipe = card["data"] or {}, card["recipe"] or {}
    lines = []
    if source := _source(card):
        limit = f", at most {data['limit']:,} images per split" if _count(data.get("limit")) else ""
        lines.append(f"- Data: {code(source)}{limit}.")
    notes = data.get("notes")
    lines += [f"- {prose(note)}" for note in (notes if isinstance(notes, Sequence) else ()) if isinstance(note, str)]
    told = [key for key in RECIPE_FIELDS if key == "seed" or recipe.get(key) not in (None, 0, "", "none", [])]
    fields = [f"{key} {code(_plain(recipe[key]))}" for key in told if key in recipe]
    lines += [f"- Recipe: {', '.join(fields)}."] if fields else []
    if isinstance(recipe.get("source"), str) and recipe["source"]:
        lines.append(f"- Source of the recipe: {prose(recipe['source'])}.")
    if calibration := card.get("calibration"):
        lines.append(
            f"- Probabilities: logits are divided by {calibration['temperature']:.4g}, fitted on "
            f"{calibration['examples']:,} images ({prose(calibration['split'])})."
        )
    versions = ", ".join(f"{key} {value}" for key, value in card["versions"].items())
    lines += [f"- Versions: {code(versions, MAX_LINE)}."] if versions else []
    if card["command"]:
        lines += ["- Command:", "", *block(one_line(card["command"], MAX_LINE), "sh")]
    return ["## Training", "", *lines] if lines else []


def _limits(card: Mapping[str, Any]) -> list[str]:
    if not card["classes"]:
        return []
    lines = [f"- It knows {len(card['classes']):,} classes only, and answers one of them for every image."]
    if card.get("calibration"):
        lines[-1] += " Images unlike those of training are marked, but not all of them."
    split, result = _chief_result(card)
    rows = [row for row in _class_rows(result) if _number(row.get("recall")) is not None and _count(row.get("support"))]
    if len(rows) > 1:
        worst = min(rows, key=lambda row: row["recall"])
        lines.append(
            f"- Its weakest class is {code(worst['class'])}: it finds {100 * worst['recall']:.1f} % of "
            f"{worst['support']:,} images of the {split} split."
        )
    size = "x".join(map(str, card["preprocess"]["size"]))
    lines.append(f"- It sees {size} pixels: details that are lost at this size do not count.")
    lines.append("- The results are for images like those of the training data; other cameras or sources may differ.")
    return ["## Limits", "", *lines]


def _origin(card: Mapping[str, Any]) -> list[str]:
    lines = [f"- Licence: {prose(card['licence'])}." if card["licence"] else "- Licence: none is stated."]
    lines += [f"- Source: {prose(card['source'])}."] if card["source"] else []
    lines += [f"- Architecture: {prose(paper)}."] if (paper := _paper(card)) else []
    return ["## Licence and source", "", *lines]


# --- fields of a card ------------------------------------------------------------------------------------------------


def _paper(card: Mapping[str, Any]) -> str:
    """Return the paper of the network, or "" for a model that this version does not have."""
    from zoo import models

    try:
        return models.create(card["model"], **card["fields"]).paper
    except (ValueError, TypeError):
        return ""


def _source(card: Mapping[str, Any]) -> str:
    return (card["data"] or {}).get("source") or ""


def _data_name(card: Mapping[str, Any]) -> str:
    """Return the name of the training data, of a path the last part: the others are of its author's machine."""
    source = _source(card)
    return source if ":" in source else source.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _hub_dataset(card: Mapping[str, Any]) -> str:
    """Return the name of the training data on the Hub, or "" if they are not known to be there."""
    kind, _, name = _source(card).partition(":")
    if kind == "hf" and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(:.*)?", name, re.ASCII):
        return name.partition(":")[0]
    return HUB_DATASETS.get(re.split("[/:]", name)[0], "") if kind == "tfds" else ""


def _chief_result(card: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the split whose result is stated first, test before validation, and its result."""
    for split in ("test", "validation"):
        if isinstance(result := card["metrics"].get(split), Mapping):
            return split, result
    return "test", {}


def _class_rows(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = result.get("per_class")
    return [row for row in rows if isinstance(row, Mapping) and "class" in row] if isinstance(rows, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _share(value: Any, key: str) -> str:
    _, factor, decimals = COLUMNS[key]
    number = _number(value)
    return "" if number is None else f"{factor * number:.{decimals}f}"


def _plain(value: Any) -> str:
    """Return a value of the recipe as text: 15 for 15.0."""
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
