"""Prediction: conversion of images, ranking of classes, and networks without a head."""

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.checkpoint import Card
from zoo.data.images.preprocess import Preprocess
from zoo.inference import evaluate
from zoo.inference.predict import classify, predict, preprocess_image
from zoo.models import abstract_variables

PREPROCESS = Preprocess((6, 6), (6, 6), channels="L", mean=(0.5,), std=(0.25,))
CLASSES = tuple("abcdefg")


@pytest.fixture(scope="module")
def network():
    """A linear classifier with random weights: (model, variables)."""
    model = zoo.create("softmax", num_classes=7, image_size=6)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_variables(model, (6, 6, 1))
    )
    return model, variables


@pytest.fixture(scope="module")
def card():
    return Card("softmax", {}, CLASSES, PREPROCESS)


def pixels(count, *shape):
    """Return random images of the input size, uint8 [count, *shape], by default [count, 6, 6]."""
    return np.random.default_rng(count).integers(0, 256, (count, *(shape or (6, 6))), np.uint8)


def expected(network, images):
    """Compute the probabilities of uint8 images [N, 6, 6] in NumPy."""
    model, variables = network
    logits = model.apply(variables, (images[..., None] / np.float32(255) - 0.5) / 0.25)[0]
    return np.asarray(jax.nn.softmax(logits))


def test_classes_are_ranked_by_probability(network, card):
    images = pixels(4)
    predictions = predict(*network, card, images[..., None], top=3)
    for prediction, row in zip(predictions, expected(network, images), strict=True):
        order = np.argsort(-row)[:3]
        assert [label for label, _ in prediction.top] == [CLASSES[i] for i in order]
        np.testing.assert_allclose([p for _, p in prediction.top], row[order], rtol=1e-5)
        assert (prediction.label, prediction.probability) == prediction.top[0]
    assert len(predict(*network, card, images[0])[0].top) == 5  # by default
    assert len(predict(*network, card, images[0], top=99)[0].top) == 7


def test_equal_probabilities_are_ranked_by_class_index(network, card):
    model, variables = network
    uniform = jax.tree.map(np.zeros_like, variables)
    assert [label for label, _ in predict(model, uniform, card, pixels(1)[0], top=7)[0].top] == list(CLASSES)


def test_every_form_of_an_image_gives_the_same_probabilities(network, card, tmp_path):
    (image,) = pixels(1)
    image[0, 0] = 255  # so that the largest value of the scaled form is exactly 1
    Image.fromarray(image).save(tmp_path / "image.png")
    path = tmp_path / "image.png"
    forms = (
        image, image[..., None], image[None, ..., None], [image], (image,), path, str(path), [path],
        image / 255, (image / 255).astype(np.float32), image.astype(np.float32), image.astype(np.int64),
    )  # fmt: skip
    for form in forms:
        (prediction,) = predict(*network, card, form, top=7)
        assert dict(prediction.top) == pytest.approx(
            dict(zip(CLASSES, expected(network, image[None])[0], strict=True)), rel=1e-4
        )
    assert len(predict(*network, card, [image, [path, pixels(2)[..., None]]])) == 4


def test_floats_up_to_one_are_scaled(network, card):
    binary = (pixels(1)[0] > 127).astype(np.uint8)
    for form, image in (
        (binary.astype(bool), 255 * binary),
        (binary.astype(float), 255 * binary),
        (1.02 * binary, 255 * binary),  # an overshoot of resizing
        (binary * 0.4 / 255, 0 * binary),  # rounded
        (binary * 0.6 / 255, binary),
        (255.0 * binary, 255 * binary),
    ):
        (prediction,) = predict(*network, card, form, top=7)
        assert dict(prediction.top) == pytest.approx(
            dict(zip(CLASSES, expected(network, image[None])[0], strict=True)), rel=1e-4
        )


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((1, 1, 8, 8, 1), np.uint8), r"\(1, 1, 8, 8, 1\)"),
        (np.full((8, 8), -1), "-1 to -1"),
        (np.full((8, 8), 256), "256"),
        (np.full((8, 8), 268.0), "268"),
        (np.full((8, 8), -0.06), "-0.06"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.full((8, 8), np.inf), "infinity"),
    ],
)
def test_arrays_that_are_not_images_are_rejected(array, named, network, card):
    with pytest.raises(ValueError, match=named):
        predict(*network, card, array)


def test_batches_are_padded_and_the_padding_is_dropped(network, card):
    model, variables = network
    images = pixels(5)
    inputs = [preprocess_image(image[..., None], PREPROCESS) for image in images]
    np.testing.assert_array_equal(np.stack(inputs)[..., 0], images)
    for batch_size in (1, 2, 3, 5, 8, 0):
        probabilities = evaluate.predict_probabilities(model, variables, np.stack(inputs), PREPROCESS, batch_size)
        np.testing.assert_allclose(probabilities, expected(network, images), rtol=1e-4)
        labels = [prediction.label for prediction in classify(model, variables, card, inputs, 1, batch_size)]
        assert labels == [CLASSES[i] for i in expected(network, images).argmax(1)]
    none = evaluate.predict_probabilities(model, variables, np.zeros((0, 6, 6, 1), np.uint8), PREPROCESS)
    assert none.shape == (0, 7) and none.dtype == np.float32
    assert classify(model, variables, card, []) == []


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 1), (2, 1), (12, 1), (13, 16), (16, 16), (17, 1), (25, 1), (26, 32), (32, 32), (48, 16), (52, 64), (64, 64)],
)
def test_prediction_pads_at_most_a_quarter(count, size):
    assert evaluate.prediction_batch(count) == size
    assert evaluate.prediction_batch(count, 16) in (1, 16)


def test_views_are_checked_before_they_are_made(network):
    drawings = Card("softmax", {}, CLASSES, Preprocess((6, 6), (6, 6), "pad", channels="L", polarity="light-on-dark",
                                                       mean=(0.5,), std=(0.25,)))  # fmt: skip
    with pytest.raises(ValueError, match="'flip'"):
        predict(*network, drawings, pixels(1)[0], tta="flip")


def test_a_network_without_a_head_predicts_nothing(network):
    with pytest.raises(ValueError, match=r"softmax.*--init"):
        predict(*network, Card("softmax", {}, (), PREPROCESS), pixels(1)[0])
