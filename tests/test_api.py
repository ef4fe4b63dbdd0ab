"""The Python interface, and prediction for digits on paper in the formats that scanners and phones save."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo import api
from zoo.data.images.decode import read_image
from zoo.training.request import open_data
from zoo.training.settings import in_terms_of_arguments


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return zoo.fit(
        "mlp", "digits", fields={"widths": (64,)}, epochs=12, learning_rate=3e-3, quiet=True, image_size=16,
        workdir=tmp_path_factory.mktemp("runs") / "run",
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    """Return a test image of each class: uint8 [10, 8, 8], light on dark."""
    split = zoo.open_dataset("digits").splits["test"]
    first = [int(np.flatnonzero(split.labels == digit)[0]) for digit in range(10)]
    return split.read(np.array(first))[..., 0]


def test_the_public_names():
    assert set(zoo.__all__) <= set(dir(zoo))
    assert all(getattr(zoo, name) is not None for name in zoo.__all__)
    with pytest.raises(AttributeError, match="lod"):
        zoo.lod  # noqa: B018


def test_create_init_apply():
    model = zoo.create("lenet5", num_classes=7)
    variables = zoo.init(model, 0)
    logits, endpoints = model.apply(variables, np.zeros((2, 32, 32, 1), np.float32))
    assert logits.shape == (2, 7) and endpoints["conv1"].shape == (2, 14, 14, 6)


def test_fit_then_load_then_predict(fitted, digits):
    loaded = zoo.load(fitted.workdir / "best")
    assert fitted.card == loaded.card and fitted.history[-1]["validation_accuracy"] > 0.9
    result = zoo.evaluate(loaded, "digits")
    assert result["accuracy"] > 0.9 and result["examples"] == 359
    assert result["accuracy"] == fitted.card.metrics["test"]["accuracy"]
    assert zoo.evaluate(fitted.workdir / "best", "digits", batch_size=11)["confusion"] == result["confusion"]
    parts = [zoo.evaluate(loaded, "digits", split) for split in ("train", "val", "test")]
    whole = zoo.evaluate(loaded, "digits", "all")
    assert whole["examples"] == 1797 == sum(part["examples"] for part in parts)
    np.testing.assert_array_equal(whole["confusion"], sum(np.array(part["confusion"]) for part in parts))


PAPER = {
    "png": lambda ink: (ink, "PNG", {}),
    "jpeg": lambda ink: (ink.convert("RGB"), "JPEG", {"quality": 92}),
    "grey jpeg": lambda ink: (ink, "JPEG", {"quality": 92}),
    "rgba": lambda ink: (
        Image.merge("RGBA", [Image.new("L", ink.size, 0)] * 3 + [ink.point(lambda v: 255 - v)]),
        "PNG",
        {},
    ),
    "rgba on white": lambda ink: (ink.convert("RGBA"), "PNG", {}),
    "16 bit": lambda ink: (Image.fromarray(np.asarray(ink).astype(np.uint16) * 257), "PNG", {}),
    "palette": lambda ink: (ink.convert("RGB").quantize(32), "PNG", {}),
    "gif": lambda ink: (ink.convert("P"), "GIF", {}),
    "webp": lambda ink: (ink.convert("RGB"), "WEBP", {"lossless": True}),
    "bilevel": lambda ink: (ink.point(lambda v: 255 if v > 140 else 0).convert("1"), "TIFF", {}),
    "grey paper": lambda ink: (ink.point(lambda v: 40 + v * 160 // 255), "PNG", {}),
}


@pytest.mark.parametrize("way", PAPER)
def test_dark_ink_on_light_paper_is_classified_like_the_original(fitted, digits, way):
    """The prediction is that for the original drawing; the card gives the polarity."""
    loaded = zoo.load(fitted.workdir / "best")
    expected = [p.label for p in loaded.predict(digits[..., None])]
    files = []
    for digit in digits:
        ink = Image.fromarray(255 - digit).resize((96, 96), Image.Resampling.BICUBIC)
        image, form, options = PAPER[way](ink)
        file = io.BytesIO()
        image.save(file, form, **options)
        files.append(file.getvalue())
    answers = [read_image(file) for file in files]
    agree = sum(p.label == label for p, label in zip(loaded.predict(answers), expected, strict=True))
    assert agree >= 9


@pytest.mark.parametrize("margin", [20, 60, 150])
def test_margins_do_not_change_predictions(fitted, digits, margin):
    """A digit in the middle or corner of a sheet of paper is framed like the training data."""
    loaded = zoo.load(fitted.workdir / "best")
    expected = [p.label for p in loaded.predict(digits[..., None])]
    for place in (margin, 5):
        sheets = []
        for digit in digits:
            sheet = Image.new("L", (96 + 2 * margin, 110 + 2 * margin), 245)
            ink = Image.fromarray(255 - digit).resize((96, 96), Image.Resampling.BICUBIC)
            sheet.paste(ink.point(lambda v: v * 245 // 255), (place, place))
            sheets.append(np.asarray(sheet))
        answers = [p.label for p in loaded.predict(sheets)]
        assert sum(a == b for a, b in zip(answers, expected, strict=True)) >= 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(fitted, digits, orientation, tmp_path):
    loaded = zoo.load(fitted.workdir / "best")
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the PIL transpose that undoes showing it
    ink = Image.fromarray(255 - digits[2]).resize((96, 96), Image.Resampling.BICUBIC)
    stored = ink if orientation == 1 else ink.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    assert loaded.predict(tmp_path / "photo.jpg")[0].label == loaded.predict(digits[2])[0].label


def test_predict_accepts_arrays_of_every_shape_and_type(fitted, digits):
    loaded = zoo.load(fitted.workdir / "best")
    one = loaded.predict(digits[3])[0]
    for form in (digits[3][..., None], digits[3] / 255, np.repeat(digits[3][..., None], 3, -1), [digits[3]]):
        assert loaded.predict(form)[0].label == one.label
    assert one.top[0] == (one.label, one.probability) and len(one.top) == 5
    assert len(loaded.predict(digits[..., None], top=3)[0].top) == 3 and loaded.predict([]) == []
    for wrong in (np.zeros((3, 8, 8)), np.zeros(5), np.full((8, 8), 300.0), np.full((8, 8), np.nan)):
        with pytest.raises(ValueError, match=r"array|pixel"):
            loaded.predict(wrong)


def test_fit_accepts_a_pair_of_arrays(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    images = (rng.integers(0, 100, (200, 8, 8)) + 50 * labels[:, None, None]).astype(np.uint8)
    done = zoo.fit(
        "softmax", (images, labels), epochs=3, batch_size=32, image_size=8, quiet=True, workdir=tmp_path / "run"
    )
    assert done.card.classes == ("0", "1", "2") and len(done.history) == 3


def test_errors_name_the_argument_split_or_classes(fitted):
    with pytest.raises(ValueError, match=r"epoch .*did you mean epochs"):
        zoo.fit("mlp", epoch=3)
    with pytest.raises(ValueError, match="no split 'tset'"):
        zoo.evaluate(fitted.workdir / "best", "digits", "tset")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 8, 8)).astype(np.uint8)
    other = zoo.from_arrays((images, np.arange(60) % 3), class_names=("7", "8", "ten"))
    with pytest.raises(ValueError, match="classes"):
        zoo.evaluate(fitted.workdir / "best", other)


def test_fitted_and_loaded_checkpoints_predict_the_same(fitted, digits):
    loaded = zoo.load(fitted.workdir / "best")
    pixels = list(digits[:2])
    assert fitted.predict(pixels, top=3) == loaded.predict(pixels, top=3)


@pytest.mark.parametrize("data", [{"image": np.zeros((4, 8, 8)), "label": np.zeros(4)}, np.zeros((4, 8, 8)), 3])
def test_data_of_an_unsupported_type_is_rejected(data):
    with pytest.raises(ValueError, match=rf"data.* {type(data).__name__}"):
        zoo.fit("lenet5", data)


def test_a_checkpoint_trained_on_arrays_requires_data_to_be_named(tmp_path, capsys):
    from zoo.cli import main

    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 255, (60, 8, 8)).astype(np.uint8), np.arange(60) % 3
    made = zoo.fit("softmax", arrays, fields={"image_size": 8}, epochs=1, workdir=tmp_path / "run", quiet=True)
    assert main(["eval", str(made.workdir / "best")]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["train", "--config", str(made.workdir)]) == 2
    assert "arrays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "channels", "where"),
    [("lenet5", 1, "conv1 takes 1 channel;"), ("resnet20", 3, "stem/conv takes 3 channels;"),
     ("mlp", 1, "the first layer takes 1 channel;"), ("highway", 3, "the first layer takes 3 channels;")],
)  # fmt: skip
def test_a_wrong_number_of_channels_names_the_layer(name, channels, where):
    import jax

    from zoo.models import abstract_variables

    model = zoo.create(name)
    size = model.input_shape[:2]
    images = jax.ShapeDtypeStruct((2, *size, 4 - channels), np.float32)
    with pytest.raises(ValueError, match=rf"^{where} got {4 - channels}"):
        jax.eval_shape(model.apply, abstract_variables(model, (*size, channels)), images)


def test_a_checkpoint_prints_as_five_lines_at_most(fitted):
    lines = repr(fitted).splitlines()
    assert len(lines) <= 5 and lines[0].startswith("Checkpoint of mlp, ") and "16x16" in lines[1]
    assert "10 (0, 1, 2, 3, 4, …)" in lines[2]
    for split in ("validation", "test"):
        assert f"{split} accuracy {100 * fitted.card.metrics[split]['accuracy']:.2f} %" in lines[3]
    shipped = repr(zoo.load("lenet5-mnist")).splitlines()
    assert len(shipped) <= 5 and "61,706 parameters" in shipped[0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"modle": "lenet5"}, "modle .*did you mean model"),
        ({"modle": "x", "init": "lenet5-mnist"}, "did you mean model"),
    ],
)
def test_a_misspelt_argument_is_named_before_one_that_is_missing(arguments, reason):
    for function in (zoo.fit, zoo.cross_validate):
        with pytest.raises(ValueError, match=reason) as caught:
            function(**arguments)
        assert "\n" not in str(caught.value)


def test_what_has_another_name_here_is_told():
    with pytest.raises(AttributeError, match=r"write zoo\.load\(.*\)\.predict\("):
        _ = zoo.predict
    with pytest.raises(AttributeError, match=r"write zoo\.fit\("):
        _ = zoo.train


def test_the_default_data_are_told():
    lines = []
    request = api._train_request("fit", "lenet5", None, None, changes={})
    assert open_data(request, lines.append).name == "digits" and len(lines) == 1
    assert "No data given: training on digits" in lines[0] and "--data FOLDER" in lines[0]
    open_data(dataclasses.replace(request, data="digits"), lines.append)
    assert len(lines) == 1


def test_printed_lines_name_arguments_not_options(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 255, (40, 8, 8)).astype(np.uint8), np.arange(40) % 2
    for _ in range(2):
        zoo.fit("softmax", arrays, epochs=1, fields={"image_size": 8}, workdir=tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if "tensorboard" not in line]
    assert not [line for line in lines if " --" in line]
    text = "\n".join(lines)
    assert "Lower batch_size or raise epochs" in text and "another argument or workdir" in text


def test_fine_tuning_needs_data():
    with pytest.raises(ValueError, match="data="):
        zoo.fit(init="lenet5-mnist")


@pytest.mark.parametrize("change", [{"learning_rate": "high"}, {"epochs": "two"}, {"lr": 0.1}])
def test_a_change_of_a_recipe_that_is_no_value_is_named(change):
    with pytest.raises(ValueError, match=next(iter(change)).replace("lr", "learning_rate")):
        zoo.fit("lenet5", "digits", **change)


@pytest.mark.parametrize("spec", ["", 3, None])
def test_loading_nothing_is_a_value_error(spec):
    with pytest.raises(ValueError, match="load"):
        zoo.load(spec)


def test_a_batch_holds_an_image_at_least():
    with pytest.raises(ValueError, match="batch_size"):
        zoo.evaluate("lenet5-mnist", "digits", batch_size=0)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--mesh data=3: use --mesh data=4", 'mesh="data=3": use mesh="data=4"'),
        ("drop --parallel pmap, use --micro-batch auto, which", 'drop parallel="pmap", use micro_batch="auto", which'),
        ("lower --batch-size or --image-size", "lower batch_size or image_size"),
        ("x. Choose another --workdir, or none", "x. Choose another workdir, or none"),
        ("use --micro-batch 8, which fits", "use micro_batch=8, which fits"),
        ("try a lower --learning-rate, --set warmup_epochs=1 or --set clip_norm=1 (y)",
         "try a lower learning_rate, warmup_epochs=1 or clip_norm=1 (y)"),
        ("Add --set class_weights=balanced.", 'Add class_weights="balanced".'),
        ("Add --init CKPT.", "Add init=CKPT."),
        ("choose --monitor accuracy", 'choose monitor="accuracy"'),
        ("--init start: name the data with --data", 'init="start": name the data with data'),
        ("use --model mlp or softmax", 'use model="mlp" or softmax'),
        ("wide. Add --folds 5 to test on all images.", "wide. Use zoo.cross_validate to test on all images."),
        ("which have no features; train without --quick", "which have no features; train with zoo.fit"),
        ("List all with `zoo list --recipes`.", "List all with `zoo list --recipes`."),
        ("run: zoo import FILE --as x --data y; or --limit 5", "run: zoo import FILE --as x --data y; or limit=5"),
    ],
)  # fmt: skip
def test_options_become_arguments(message, expected):
    assert in_terms_of_arguments(message) == expected


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"parallel": "pmpa"}, 'parallel="pmpa"'),
        ({"mesh": "data=x"}, "mesh="),
        ({"device_data": "maybe"}, 'device_data="maybe"'),
        ({"batch_size": 30, "mesh": "data=8"}, "batch_size"),
        ({"workdir": "FILE"}, "workdir"),
        ({"workdir": "FULL"}, "another workdir"),
        ({"recipe": "bit-hyperrule", "epochs": 3}, "warmup_epochs=0.3"),
        ({"data": "FULL"}, "FULL"),
        ({"log": "wandbb"}, "log"),
        ({"data": "xor", "model": "lenet5"}, 'model="mlp"'),
        ({"data": "xor", "image_size": 8}, "image_size=8"),
    ],
    ids=str,
)
def test_mistakes_in_python_are_answered_with_arguments(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("x")
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "notes.txt").write_text("x")
    with pytest.raises((ValueError, OSError)) as caught:
        zoo.fit(
            **{
                "model": "softmax" if "xor" not in arguments.values() else "mlp",
                "data": "digits",
                "quiet": True,
                **arguments,
            }
        )
    assert part in str(caught.value) and " --" not in f" {caught.value}", caught.value
