"""`zoo show`: filters, attribution and feature maps, units, and embeddings, as pictures."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import run_command
from PIL import Image

import zoo
from zoo.analysis import embedding, pictures, visualise
from zoo.data.images.preprocess import Preprocess, normalise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with random weights for digits."""
    folder = tmp_path_factory.mktemp("show") / "ckpt"
    model = zoo.create("resnet20", blocks=(1,), width=8, num_classes=10)
    preprocess = Preprocess((16, 16), (16, 16), channels="L", mean=(0.3,), std=(0.4,))
    classes = [str(k) for k in range(10)]
    zoo.save(folder, model, zoo.init(model, 0, (16, 16, 1)), classes, preprocess, data={"source": "digits"})
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return zoo.load(folder)


def assert_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 100
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_filters(folder, loaded, tmp_path, capsys):
    code, out, _ = run_command(capsys, "show", folder, "-o", tmp_path / "a.png")
    assert code == 0 and "8 filters of 3x3x1" in out and "stage1" in out and "7x7 pixels every 1" in out
    assert_picture(tmp_path / "a.png")
    filters = visualise.first_layer_filters(loaded.model, loaded.variables, (16, 16, 1))
    kernel = np.asarray(loaded.variables["params"]["stem"]["conv"]["kernel"])
    np.testing.assert_array_equal(filters[3], kernel[..., 3])
    mlp = zoo.create("mlp", widths=(5,), image_size=4)
    variables = zoo.init(mlp, 0, (4, 4, 3))
    dense = visualise.first_layer_filters(mlp, variables, (4, 4, 3))
    image = np.random.default_rng(0).normal(size=(4, 4, 3))
    kernel = np.asarray(variables["params"]["hidden1"]["kernel"])
    np.testing.assert_allclose((dense * image).sum((1, 2, 3)), image.ravel() @ kernel, rtol=1e-5)


@pytest.mark.slow
def test_an_image(folder, tmp_path, capsys):
    words = ("show", folder, "--image", ROOT / "docs" / "digit.png", "--target", "3", "-o", tmp_path / "a.png")
    code, out, _ = run_command(capsys, *words)
    assert code == 0 and "explained class: 3" in out
    assert_picture(tmp_path / "a.png")


def test_a_unit_and_the_images_that_excite_it(folder, loaded, tmp_path, capsys):
    unit = visualise.parse_unit("stage1:5", loaded)
    split = zoo.open_dataset("digits").splits["test"]
    best = visualise.top_images(loaded, split, unit, count=4)
    images = normalise(zoo.preprocess(list(split.read(np.arange(len(split)))), loaded, normalised=False),
                       loaded.card.preprocess)  # fmt: skip
    maps = np.asarray(loaded.model.apply(loaded.variables, images)[1]["stage1"])[..., 5]
    order = np.argsort(-maps.max((1, 2)))[:4]
    assert [found.record for found in best] == order.tolist()
    np.testing.assert_allclose([found.activation for found in best], maps.max((1, 2))[order], rtol=1e-4)
    assert best[0].position == np.unravel_index(maps[order[0]].argmax(), maps.shape[1:])
    code, out, _ = run_command(capsys, "show", folder, "--unit", "stage1:5", "--limit", 60, "-o", tmp_path / "a.png")
    assert code == 0 and len(out.splitlines()) == 10
    assert_picture(tmp_path / "a.png")


def test_maximised_activations_are_above_those_of_images(loaded):
    preprocess = loaded.card.preprocess
    image = visualise.maximise_activation(
        loaded.model, loaded.variables, preprocess, "logits", 4, jax.random.key(0), steps=40
    )
    assert image.shape == (16, 16, 1) and image.min() >= 0 and image.max() <= 1
    split = zoo.open_dataset("digits").splits["test"]
    pixels = zoo.preprocess(list(split.read(np.arange(50))), loaded, normalised=False)
    digits, _ = loaded.model.apply(loaded.variables, normalise(pixels, preprocess))
    found, _ = loaded.model.apply(loaded.variables, normalise(255 * image[None], preprocess))
    assert found[0, 4] > np.median(digits[:, 4])


def test_an_embedding(folder, tmp_path, capsys):
    words = ("show", folder, "--features", "digits", "--limit", 80, "-o", tmp_path / "a.png")
    code, out, _ = run_command(capsys, *words)
    assert code == 0 and out.startswith("80 images; features of resnet20 on digits, test split")
    assert_picture(tmp_path / "a.png")


def test_umap_separates_clusters_and_is_named_where_missing(monkeypatch, folder, tmp_path, capsys):
    words = ("show", folder, "--features", "digits", "--limit", 8, "--umap", "-o", tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        patch.setattr("importlib.util.find_spec", lambda name: None)
        code, _, err = run_command(capsys, *words)
    assert code == 2 and err.splitlines() == [
        "zoo show: UMAP: umap-learn is not installed; type pip install 'jax-model-zoo[umap]'"
    ]
    pytest.importorskip("umap")
    assert run_command(capsys, *words)[0] == 0
    rng = np.random.default_rng(0)
    points = embedding.project_umap(np.concatenate([rng.normal(size=(30, 5)), rng.normal(20, 1, (30, 5))]), 0)
    centres = points[:30].mean(0), points[30:].mean(0)
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * max(points[:30].std(0).max(), points[30:].std(0).max())
    assert [len(embedding.project_umap(rng.normal(size=(n, 5)), 0)) for n in (4, 5)] == [4, 5]


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
    ours, shares = embedding.principal_components(rows, 3)
    pca = PCA(3).fit(rows)
    np.testing.assert_allclose(np.abs(ours), np.abs(pca.transform(rows)), rtol=1e-4)
    np.testing.assert_allclose(shares[:3], pca.explained_variance_ratio_)
    flat, _ = embedding.principal_components(np.ones((3, 1)), 1)
    assert flat.shape == (3, 2) and not flat.any()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--unit", "stage9:1"), "stage9"),
        (("--unit", "stage1:8"), "0 to 7"),
        (("--unit", "stage1"), "STAGE:NUMBER"),
        (("--target", "3"), "--image"),
        (("--umap",), "--features"),
        (("--features", "digits", "--split", "nothing"), "nothing"),
        (("--image", "missing.png"), "missing.png"),
        (("--image", ROOT / "docs" / "digit.png", "--target", "eleven"), "eleven"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, words, named):
    code, _, err = run_command(capsys, "show", folder, *words, "-o", tmp_path / "a.png")
    assert code == 2 and named in err and err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_pictures():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert pictures.to_rgb(grey).shape == (3, 4, 3)
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[..., 0] = 200
    assert pictures.to_rgb(colour, "BGR")[0, 0].tolist() == [0, 0, 200]
    heat = np.zeros((3, 4))
    heat[1, 2] = 1
    over = pictures.overlay(grey, heat)
    assert np.array_equal(over[0, 0], [0, 0, 0]) and np.ptp(over[1, 2]) > 20
    assert pictures.signed(np.array([[-1.0, 0, 1]]))[0, 1].min() > 240
    sheet = pictures.mosaic([over] * 5, 3, gap=2)
    assert sheet.shape == (3 * 2 + 2, 4 * 3 + 4, 3)
    assert pictures.data_uri(over).startswith("data:image/png;base64,")
    assert pictures.data_uri(np.zeros((90, 400, 3), np.uint8), 160).startswith("data:image/jpeg;base64,")
