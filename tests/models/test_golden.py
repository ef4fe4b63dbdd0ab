"""Networks reproduce recorded outputs of the reference implementations for the same seeded weights.

Recorded by tests/parity, which compares far more and needs PyTorch and Keras: a few logits and the mean of every
endpoint.
"""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from reference_keys import KEYS
from seeded import seeded_images, seeded_tensors

import zoo.models as models
from zoo.pretrained.convert import convert, export

CARDS = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_recorded_numbers(path):
    card = json.loads(path.read_text())
    model = models.create(card["model"], **card["fields"])
    source = KEYS.get(card["source"]) or importlib.import_module(f"zoo.pretrained.{card['source']}")
    # The keys of akamaster's published files begin with "module.", which the importer removes.
    tensors = {key.removeprefix("module."): value for key, value in seeded_tensors(card["tensors"]).items()}
    abstract = models.abstract_variables(model, tuple(card["image_shape"]))
    key_map = source.key_map(model, abstract)
    variables = convert(key_map, tensors, abstract, source.IGNORED)
    images = seeded_images((len(card["logits"]), *card["image_shape"]))
    options = {"xla_backend_optimization_level": 0}  # compiles faster; each function runs once
    logits, ends = jax.device_get(jax.jit(model.apply, compiler_options=options)(variables, images))
    expected = np.array(card["logits"])
    np.testing.assert_allclose(logits[:, : expected.shape[1]], expected, atol=1e-4 * np.abs(expected).max())
    for end, mean in card["means"].items():
        assert ends[end].mean() == pytest.approx(mean, rel=1e-3, abs=1e-5), end

    again = convert(key_map, export(key_map, variables), abstract, source.IGNORED)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_there_are_cards_and_they_are_small():
    assert CARDS and sum(path.stat().st_size for path in CARDS) < 100_000
