"""README.md of a checkpoint: valid front matter, and no text of a card that means something in Markdown or YAML."""

import json
import re

import pytest
import yaml

import zoo
from zoo.checkpoint.model_card import cell, code, model_card, prose, yaml_text
from zoo.data.images.preprocess import Preprocess
from zoo.pretrained.names import shipped, shipped_folder

HOSTILE = (
    "---", "- x", "a|b", "c: d", "two\nlines", "``tick``", "<img src=x onerror=alert(1)>", "[a](http://evil)",
    "# title", "\x1b[2J", "\u202eevil", "'\"\\", "{{ x }}", "日本 | 語", "!!python/object:os.system", "",
)  # fmt: skip


def front_matter(text):
    start, head, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head), body


def card(**changes):
    preprocess = {"size": [32, 32], "resize": [28, 28], "resize_mode": "pad", "interpolation": "bilinear",
                  "channels": "L", "polarity": None, "mean": [0.5], "std": [0.25]}  # fmt: skip
    empty = {"model": "lenet5", "fields": {"num_classes": 2}, "classes": ["cat", "dog"], "preprocess": preprocess,
             "recipe": None, "data": None, "metrics": {}, "versions": {}, "licence": "", "source": "", "command": "",
             "leaves": []}  # fmt: skip
    return {**empty, **changes}


@pytest.mark.parametrize("name", shipped())
def test_shipped_checkpoints_have_the_readme_of_their_card(name):
    folder = shipped_folder() / name
    data = json.loads((folder / "card.json").read_text("utf-8"))
    assert (folder / "README.md").read_text("utf-8") == model_card(data)


def test_a_card_tells_results_classes_input_training_and_licence():
    result = {"accuracy": 0.75, "examples": 8, "loss": 0.5, "top5": None, "macro_f1": 0.7, "per_class": [
        {"class": "cat", "precision": 1.0, "recall": 0.5, "f1": 0.6, "support": 4},
        {"class": "dog", "precision": 0.8, "recall": 1.0, "f1": 0.8, "support": 4},
    ]}  # fmt: skip
    text = model_card(card(
        metrics={"test": result, "validation": {"accuracy": 0.5, "examples": 1000}}, licence="MIT",
        data={"source": "/home/ada/photos/", "notes": ["held out by content"], "limit": 0},
        command="zoo train --seed 1",
        recipe={"epochs": 5.0, "seed": 0, "l2": 0.0, "augment": ["flip", "crop(pad=4)"], "source": "Smith 2018"},
    ), "hf:ada/pets")  # fmt: skip
    head, body = front_matter(text)
    assert head["license"] == "mit" and head["pipeline_tag"] == "image-classification" and "datasets" not in head
    (entry,) = head["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "photos", "type": "photos", "split": "test"}
    assert entry["metrics"] == [{"type": "accuracy", "value": 0.75}]
    assert "| test | 8 | 75.00 | 70.00 | 0.5000 |" in body and "| validation | 1,000 | 50.00 |  |  |" in body
    assert "| `cat` | 4 | 100.00 | 50.00 |" in body and "weakest class is `cat`: it finds 50.0 % of 4 images" in body
    assert "zoo predict hf:ada/pets photo.jpg" in body and 'zoo.load("hf:ada/pets")' in body and "USER/NAME" not in text
    assert "epochs `5`, augment `flip; crop(pad=4)`, seed `0`." in body and "held out by content" in body
    assert "zoo train --seed 1" in body and "LeCun et al. 1998" in body and "Licence: MIT." in body


@pytest.mark.parametrize(("source", "dataset"), [
    ("tfds:mnist", "ylecun/mnist"), ("tfds:mnist:3.0.1", "ylecun/mnist"), ("hf:ada/pets:small", "ada/pets"),
    ("tfds:my_own", None), ("mnist", None), ("hf:../x", None), ("hf:a b", None),
])  # fmt: skip
def test_only_data_known_to_be_on_the_hub_are_named_there(source, dataset):
    head, _ = front_matter(model_card(card(data={"source": source})))
    assert head.get("datasets", [None]) == [dataset]


def test_what_is_not_known_is_left_out():
    text = model_card(card(classes=[], fields={"num_classes": None}, model="someone's", licence="Ada's own: v1"))
    head, body = front_matter(text)
    assert head["license"] == "other" and head["license_name"] == "ada-s-own-v1"
    assert head["pipeline_tag"] == "image-feature-extraction" and not {"metrics", "model-index"} & set(head)
    assert "## Results" not in body and "## Classes" not in body and "Architecture" not in body
    assert "license" not in front_matter(model_card(card()))[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_card_has_a_meaning_in_markdown_or_yaml(text):
    row = {"class": text, "precision": "high", "recall": None, "support": True}
    data = model_card(card(
        classes=[text, "dog"], licence=text, source=text, command=text, versions={text: text}, model=text,
        data={"source": text, "notes": [text, 3]}, recipe={"source": text, "optimizer": text, "augment": [text]},
        metrics={"test": {"accuracy": 0.5, "per_class": [row, "no row"]}, "published": {"data": text, "accuracy": 1}},
    ))  # fmt: skip
    head, body = front_matter(data)
    assert set(head) <= {"license", "license_name", "library_name", "pipeline_tag", "tags", "metrics", "model-index",
                         "datasets"}  # fmt: skip
    assert all(character.isprintable() or character == "\n" for character in data)
    assert yaml.safe_load(yaml_text(text)) == json.loads(yaml_text(text))
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", body)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Use", "## Results", "## Classes", "## Input", "## Training", "## Limits",
                            "## Licence and source"]  # fmt: skip
    for line in body.splitlines():  # every row of a table has the cells of its head
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5, line


def test_spans_of_code_and_prose_show_their_characters():
    assert code("a`b``c") == "```a`b``c```" and code("`a") == "`` `a ``" and code("a|b") == "`a|b`"
    assert cell(code("a|b")) == r"`a\|b`"
    assert prose("- x") == r"\- x" and prose("1. x") == r"1\. x" and prose("3.5 GB") == "3.5 GB"
    assert prose("<b>*x*</b> [y](z) http://a www.b") == r"\<b\>\*x\*\</b\> \[y\](z) http\://a www\.b"


def test_a_card_of_many_long_names_stays_short():
    names = [f"{number:05}" + "x" * 9000 for number in range(5000)]
    text = model_card(card(classes=names, fields={"num_classes": 5000}))
    assert len(text) < 50_000 and "and 4,800 more in card.json" in text


def test_a_saved_checkpoint_has_it(tmp_path):
    model = zoo.create("mlp", num_classes=2, image_size=4, widths=(3,))
    preprocess = Preprocess(size=(4, 4), resize=(4, 4), channels="L", mean=(0.5,), std=(0.5,))
    zoo.save(tmp_path / "ckpt", model, zoo.init(model, 0), ("a|b", "c"), preprocess, licence="CC0-1.0")
    head, body = front_matter((tmp_path / "ckpt" / "README.md").read_text("utf-8"))
    assert head["license"] == "cc0-1.0" and "`a|b`, `c`" in body
    listed = json.loads((tmp_path / "ckpt" / "manifest.json").read_text())["files"]
    assert "README.md" in listed
