"""Prediction equals evaluation: for every source and every kind of image the same pixels, and so the same classes."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from photos import encoded
from PIL import Image

import zoo
from zoo.checkpoint import Card
from zoo.data.images.measure import preprocess_for
from zoo.data.images.preprocess import Preprocess, images_to_input, normalise
from zoo.inference.files import predict_files
from zoo.inference.predict import Checkpoint, preprocess_image
from zoo.models import defining_fields, name_of

CLASSES = ("ant", "bee", "cat")
COUNT = 24


def shapes(ground=0, low=60):
    """Return grey images of squares of several places and levels, uint8 [COUNT, 20, 24]."""
    rng = np.random.default_rng(0)
    images = np.full((COUNT, 20, 24), ground, np.uint8)
    for n, image in enumerate(images):
        top, left = rng.integers(2, 5), rng.integers(2, 7)
        image[top : top + 14, left : left + 4 + 4 * (n % 3)] = rng.integers(low, 256)
    return images


def colours():
    return np.random.default_rng(1).integers(0, 256, (COUNT, 20, 24, 3)).astype(np.uint8)


def drawn(ground, noise):
    rng = np.random.default_rng(2)
    return np.clip(shapes(ground, 120) + rng.normal(0, noise, (COUNT, 20, 24)), 0, 255).astype(np.uint8)


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(image), "JPEG", quality=95, exif=exif)


def transparent(image):
    alpha = np.random.default_rng(int(image.sum()) % 97).integers(0, 256, image.shape[:2]).astype(np.uint8)
    return encoded(Image.fromarray(np.dstack([image, alpha])))


def tiff(values, dtype):
    return encoded(Image.fromarray(values.astype(dtype)), "TIFF")


def mixed(n, image):
    modes = ("L", "RGB", "P", "CMYK", "1", "RGBA")
    picture = Image.fromarray(image).convert(modes[n % 6])
    return encoded(picture, "TIFF" if picture.mode == "CMYK" else "PNG")


FILES = {  # kind -> encoded files
    "grey": lambda: [encoded(Image.fromarray(x)) for x in shapes()],
    "grey jpeg": lambda: [encoded(Image.fromarray(x), "JPEG") for x in shapes()],
    "dark on light": lambda: [encoded(Image.fromarray(255 - x)) for x in shapes()],
    "scans with a dark border": lambda: [encoded(Image.fromarray(x)) for x in drawn(20, 2)],
    "scans with a light border": lambda: [encoded(Image.fromarray(255 - x)) for x in drawn(30, 4)],
    "noisy black": lambda: [encoded(Image.fromarray(x)) for x in drawn(3, 2)],
    "colour": lambda: [encoded(Image.fromarray(x)) for x in colours()],
    "turned photos": lambda: [turned(x) for x in colours()],
    "palette": lambda: [encoded(Image.fromarray(x).quantize(17)) for x in colours()],
    "cmyk": lambda: [encoded(Image.fromarray(x).convert("CMYK"), "JPEG") for x in colours()],
    "rgba": lambda: [transparent(x) for x in colours()],
    "grey with alpha": lambda: [encoded(Image.fromarray(x).convert("LA")) for x in shapes()],
    "bilevel": lambda: [encoded(Image.fromarray(x > 100)) for x in shapes()],
    "zeros and ones": lambda: [encoded(Image.fromarray(x // 128)) for x in shapes()],
    "12 bits": lambda: [encoded(Image.fromarray(x.astype(np.uint16) * 16)) for x in shapes()],
    "12 bits, tiff": lambda: [tiff(x.astype(int) * 13 + 5, np.uint16) for x in shapes()],
    "16 bits": lambda: [encoded(Image.fromarray(x.astype(np.uint16) * 257)) for x in shapes()],
    "float 0..1": lambda: [tiff(x / 255, np.float32) for x in shapes()],
    "float a hair over 1": lambda: [tiff(x / 250, np.float32) for x in shapes()],
    "float counts": lambda: [tiff(x * (0.7 if n % 2 else 1.3), np.float32) for n, x in enumerate(shapes())],
    "float 0..255, some dark": lambda: [tiff(x / (1 if n % 3 else 300), np.float32) for n, x in enumerate(shapes())],
    "int32": lambda: [tiff(x.astype(int) * 40, np.int32) for x in shapes()],
    "mixed modes": lambda: [mixed(n, x) for n, x in enumerate(colours())],
    "mixed depths": lambda: [
        encoded(Image.fromarray(x.astype(np.uint16) * 257 if n % 2 else x)) for n, x in enumerate(shapes())
    ],
    "mixed sizes": lambda: [encoded(Image.fromarray(x[: 12 + n % 8, : 10 + n % 12])) for n, x in enumerate(colours())],
}

SIDE = 16


def untrained(dataset):
    """Return a checkpoint with random weights whose preprocessing was measured on a data set.

    The bias of its head is such that all classes occur, and that no image has two equally likely ones: which of them
    comes first would depend on rounding.
    """
    preprocess = preprocess_for(dataset, (SIDE, SIDE))
    model = zoo.create("mlp", num_classes=dataset.num_classes, widths=(16,), image_size=SIDE)
    variables = zoo.init(model, 1, preprocess.input_shape)
    split = dataset.splits["train"]
    inputs = normalise(images_to_input(split.read(np.arange(len(split))), preprocess), preprocess)
    head = variables["params"]["head"]
    logits, _ = model.apply(variables, inputs)
    head["bias"] = head["bias"] - np.median(logits, axis=0) + 0.01 * np.arange(dataset.num_classes, dtype=np.float32)
    card = Card(name_of(model), defining_fields(model), dataset.class_names, preprocess)
    return Checkpoint(model, variables, card)


def confusion(predictions, truth, classes):
    counts = np.zeros((len(classes), len(classes)), int)
    for prediction, label in zip(predictions, truth, strict=True):
        counts[label, classes.index(prediction.label)] += 1
    return counts


def assert_equal_to_evaluation(checkpoint, data, images, labels):
    """Assert that prediction on images, together and one by one, gives the classes that evaluation counts."""
    classes = list(checkpoint.card.classes)
    expected = np.array(zoo.evaluate(checkpoint, data, "all").confusion)
    assert expected.sum() == len(labels) and len(np.flatnonzero(expected.sum(0))) > 1
    together = checkpoint.predict(images)
    np.testing.assert_array_equal(confusion(together, labels, classes), expected)
    alone = [checkpoint.predict(image)[0] for image in images]
    assert [p.label for p in alone] == [p.label for p in together]


def as_folder(root, files):
    paths = []
    for n, data in enumerate(files):
        path = root / "photos" / CLASSES[n % 3] / f"{n:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        paths.append(path.rename(path.with_suffix(".png")))  # the suffix does not matter
    return root / "photos", paths


def as_table(root, files):
    paths = [root / f"{n:02}.img" for n in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    rows = [f"{path.name},{CLASSES[n % 3]}" for n, path in enumerate(paths)]
    (root / "list.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return root / "list.csv", paths


def as_shards(root, files):
    with tarfile.open(root / "all.tar", "w") as archive:
        for n, data in enumerate(files):
            for name, content in ((f"{n:02}.png", data), (f"{n:02}.cls", CLASSES[n % 3].encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return root / "all.tar", [io.BytesIO(data) for data in files]


@pytest.mark.parametrize("kind", FILES)
def test_prediction_on_a_folder_equals_evaluation(kind, tmp_path):
    folder, paths = as_folder(tmp_path, FILES[kind]())
    checkpoint = untrained(zoo.open_dataset(folder))
    assert_equal_to_evaluation(checkpoint, folder, paths, np.arange(COUNT) % 3)


@pytest.mark.parametrize("source", [as_table, as_shards])
@pytest.mark.parametrize("kind", ["12 bits", "float counts", "mixed modes", "scans with a dark border"])
def test_prediction_on_tables_and_shards_equals_evaluation(source, kind, tmp_path):
    data, files = source(tmp_path, FILES[kind]())
    checkpoint = untrained(zoo.open_dataset(data))
    images = [file if not hasattr(file, "getvalue") else file.getvalue() for file in files]
    assert_equal_to_evaluation(checkpoint, data, images, np.arange(COUNT) % 3)


ARRAYS = {
    "uint8": shapes,
    "dark on light": lambda: 255 - shapes(),
    "scans": lambda: drawn(20, 2),
    "zeros and ones": lambda: shapes() // 128,
    "int64 zeros and ones": lambda: shapes().astype(int) // 128,
    "bool": lambda: shapes() > 100,
    "int64": lambda: shapes(low=130).astype(np.int64),
    "12 bits": lambda: shapes().astype(np.uint16) * 16,
    "16 bits": lambda: shapes().astype(np.uint16) * 257,
    "float 0..1": lambda: shapes() / 255,
    "a hair over 1": lambda: shapes() / 254.9,
    "float 0..255": lambda: shapes().astype(np.float32),
    "colour": colours,
    "channels first": lambda: colours().transpose(0, 3, 1, 2),
    "rgba": lambda: np.concatenate([colours(), colours()[..., :1]], -1),
    "half": lambda: (colours() / 255).astype(np.float16),
}


def one_by_one(images):
    """Return single images in a form that cannot be mistaken for a stack."""
    return [image[None] if image.ndim == 3 and image.shape[0] in (1, 3, 4) else image for image in images]


@pytest.mark.parametrize("kind", ARRAYS)
def test_prediction_on_arrays_equals_evaluation(kind):
    x, y = ARRAYS[kind](), np.arange(COUNT) % 3
    checkpoint = untrained(zoo.from_arrays((x, y), class_names=CLASSES))
    expected = np.array(zoo.evaluate(checkpoint, (x, y)).confusion)
    np.testing.assert_array_equal(confusion(checkpoint.predict(x), y, list(CLASSES)), expected)
    dataset = zoo.from_arrays((x, y), validation=(x, y), test=(x, y), class_names=CLASSES)
    np.testing.assert_array_equal(zoo.evaluate(checkpoint, dataset).confusion, expected)
    alone = [checkpoint.predict(image)[0].label for image in one_by_one(x)]
    assert alone == [p.label for p in checkpoint.predict(x)] == [p.label for p in checkpoint.predict(one_by_one(x))]


@pytest.mark.parametrize("kind", ["uint8", "zeros and ones", "12 bits", "a hair over 1", "rgba"])
def test_prediction_on_npz_equals_evaluation(kind, tmp_path):
    x, y = ARRAYS[kind](), np.arange(COUNT) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, class_names=CLASSES)
    checkpoint = untrained(zoo.open_dataset(tmp_path / "data.npz"))
    assert_equal_to_evaluation(checkpoint, tmp_path / "data.npz", list(x), y)


@pytest.mark.parametrize("scale", [1, 128])
def test_prediction_on_idx_equals_evaluation(scale, tmp_path):
    x, y = shapes() // scale, np.arange(COUNT) % 3
    for name, array in (("train-images-idx3", x), ("train-labels-idx1", y.astype(np.uint8))):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    checkpoint = untrained(zoo.open_dataset(tmp_path))
    assert_equal_to_evaluation(checkpoint, tmp_path, list(x), y)


def test_ambiguous_arrays_are_an_error_in_both():
    x, y = shapes(), np.arange(COUNT) % 3
    checkpoint = untrained(zoo.from_arrays((x, y), class_names=CLASSES))
    for wrong in (x // 128, x.astype(int) // 3, x.astype(np.uint16) * 16, x / 100, x / -255):
        for call in (lambda: checkpoint.predict(wrong), lambda: zoo.evaluate(checkpoint, (wrong, y))):  # noqa: B023
            with pytest.raises(ValueError, match="range from") as caught:
                call()
            assert "\n" not in str(caught.value)


def test_deep_files_keep_the_range_of_the_training_data(tmp_path):
    """A model of 12-bit files reads a lone dark file, and another folder, in the range of its training data."""
    folder, _ = as_folder(tmp_path, FILES["12 bits"]())
    checkpoint = untrained(zoo.open_dataset(folder))
    assert checkpoint.card.preprocess.white == 4095
    dark = np.zeros((20, 24), np.uint16)
    dark[5:15] = 900
    pixels = zoo.preprocess(encoded(Image.fromarray(dark)), checkpoint.card, normalised=False)
    assert pixels.max() == round(900 * 255 / 4095)
    other = tmp_path / "other" / "photos"
    for n, label in enumerate(CLASSES):
        (other / "test" / label).mkdir(parents=True)
        Image.fromarray(dark + np.uint16(n)).save(other / "test" / label / "1.png")
    split = zoo.open_dataset(other).splits["test"]
    assert split.white == 1023
    expected = np.array(zoo.evaluate(checkpoint, other).confusion)
    got = checkpoint.predict([path for label in CLASSES for path in (other / "test" / label).iterdir()])
    np.testing.assert_array_equal(confusion(got, range(3), list(CLASSES)), expected)
    problems = []
    by_command = list(predict_files(checkpoint, sorted(other.glob("*/*/*.png")), 5, "", problems))
    assert not problems and [prediction.top for _, prediction in by_command] == [prediction.top for prediction in got]


# --- zoo.preprocess --------------------------------------------------------------------------------------------------


def test_preprocess_gives_what_the_model_takes(tmp_path):
    x, y = colours(), np.arange(COUNT) % 3
    checkpoint = untrained(zoo.from_arrays((x, y), class_names=CLASSES))
    how = checkpoint.card.preprocess
    inputs = zoo.preprocess(x, checkpoint.card)
    assert inputs.shape == (COUNT, SIDE, SIDE, 3) and inputs.dtype == np.float32
    pixels = zoo.preprocess(x, checkpoint.card, normalised=False)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[3], preprocess_image(x[3], how))
    by_hand = (pixels / 255 - np.array(how.mean)) / np.array(how.std)
    np.testing.assert_allclose(inputs, by_hand, atol=1e-5)
    np.testing.assert_array_equal(inputs, np.asarray(normalise(pixels, how)))
    logits, _ = checkpoint.model.apply(checkpoint.variables, inputs)
    labels = [CLASSES[k] for k in np.argmax(logits, -1)]
    assert labels == [p.label for p in checkpoint.predict(x)]
    Image.fromarray(x[0]).save(tmp_path / "a.png")
    for one in (x[0], tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(x[0]), encoded(x[0])):
        for card in (checkpoint.card, checkpoint, how):
            np.testing.assert_array_equal(zoo.preprocess(one, card), inputs[0])
    np.testing.assert_array_equal(zoo.preprocess([x[0], tmp_path / "a.png"], checkpoint), inputs[[0, 0]])
    assert zoo.preprocess([], checkpoint).shape == (0, SIDE, SIDE, 3)
    with pytest.raises(ValueError, match="str"):
        zoo.preprocess(x, "lenet5-mnist")


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint():
    return untrained(zoo.from_arrays((colours(), np.arange(COUNT) % 3), class_names=CLASSES))


@pytest.mark.parametrize("top", [0, -1, 1.5, "3", None, True])
def test_top_must_be_at_least_one(checkpoint, top):
    with pytest.raises(ValueError, match="top="):
        checkpoint.predict(colours(), top=top)


def test_top_may_be_any_whole_number(checkpoint):
    assert [len(checkpoint.predict(colours()[0], top=top)[0].top) for top in (1, 2, np.int64(3), 9)] == [1, 2, 3, 3]


def test_evaluate_takes_arrays_as_fit_does(checkpoint):
    x, y = colours(), np.arange(COUNT) % 3
    expected = zoo.evaluate(checkpoint, (x, y))
    assert expected.examples == COUNT
    for labels in (np.array(CLASSES)[y], y.astype(float), np.eye(3)[y], y[:, None], list(y), y.astype(np.uint8)):
        assert zoo.evaluate(checkpoint, (x, labels)).accuracy == expected.accuracy
    assert zoo.evaluate(checkpoint, (x, y), "all", limit=10).examples == 10
    some = zoo.evaluate(checkpoint, (x[y == 2], y[y == 2]))  # a single class, the last one
    np.testing.assert_array_equal(np.array(some.confusion)[2], np.array(expected.confusion)[2])


def test_labels_that_are_class_names_are_not_positions():
    x, y = colours(), np.arange(COUNT) % 3
    named = untrained(zoo.from_arrays((x, y + 5), validation=(x, y + 5)))
    assert named.card.classes == ("5", "6", "7")
    by_name, by_place = zoo.evaluate(named, (x, y + 5)), zoo.evaluate(named, (x, y))
    np.testing.assert_array_equal(by_name.confusion, by_place.confusion)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ((colours(), np.arange(COUNT)), "labels 3"),
        ((colours(), ["ant"] * 23 + ["elk"]), "elk"),
        ((colours(), np.arange(5)), "24 images but 5 labels"),
        ((colours(),), "pair"),
        ((colours(), np.zeros(COUNT, "datetime64[s]")), "datetime64"),
        ((colours(), np.array([None] * COUNT)), "None"),
        ((colours().astype(str), np.arange(COUNT) % 3), "numbers"),
        ((np.array([None] * COUNT), np.arange(COUNT) % 3), "objects"),
        ([colours(), np.arange(COUNT) % 3], "list"),
        (colours(), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_data_that_cannot_be_evaluated(checkpoint, data, named):
    with pytest.raises(ValueError) as caught:
        zoo.evaluate(checkpoint, data)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_cards_without_white_are_read():
    assert zoo.load("lenet5-mnist").card.preprocess.white is None
    how = Preprocess((4, 4), (4, 4), ink_extent=0.5, polarity="light-on-dark")
    assert how.ink == how.ink_extent
    for white in (0, -1, float("nan"), float("inf"), "255", True):
        with pytest.raises(ValueError, match="white"):
            Preprocess((4, 4), (4, 4), white=white)
