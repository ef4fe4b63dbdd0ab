"""Sketches of image sets, against the sets themselves."""

import json

import numpy as np
import pytest
from helpers import random_images

from zoo.data import content_sketch
from zoo.data.content_sketch import SIZE, ContentSketch, describe_shared, sketch_of
from zoo.data.splits import ArraySplit


def keys_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(16) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 10, SIZE, SIZE + 1, 20_000])
@pytest.mark.parametrize("shared", [0, 0.2, 1])
def test_the_shared_part_is_exact_for_small_sets_and_estimated_for_large_ones(count, shared):
    trained, new = keys_of(count), keys_of(count, 1)
    members = round(shared * count)
    asked = [*trained[:members], *new[members:]]
    sketch = ContentSketch.from_keys([*trained, *trained])  # repeated images count once
    assert sketch.images == count and sketch.is_complete == (count <= SIZE) and len(sketch.hashes) == min(count, SIZE)
    share, is_exact = sketch.shared(asked)
    assert is_exact == (count <= SIZE)
    assert share == pytest.approx(members / count, abs=0 if is_exact or shared in (0, 1) else 0.1)
    assert ContentSketch.from_json(json.loads(json.dumps(sketch.to_json()))) == sketch
    assert len(json.dumps(sketch.to_json())) < 3000


def test_few_images_of_a_large_set_are_found_among_many():
    trained = keys_of(20_000)
    sketch = ContentSketch.from_keys(trained)
    assert sketch.shared(trained[5_000:9_000])[0] == 1 and sketch.shared(keys_of(4_000, 1))[0] == 0


@pytest.mark.parametrize("counts", [(10, 20), (200, 200), (10, 5000), (5000, 10), (5000, 8000)])
def test_merged_sketches_are_those_of_the_union(counts):
    one, two = keys_of(counts[0]), keys_of(counts[1], 1)
    merged = ContentSketch.from_keys(one).merge(ContentSketch.from_keys(two))
    direct = ContentSketch.from_keys([*one, *two])
    assert merged.hashes == direct.hashes[: len(merged.hashes)] and len(merged.hashes) >= SIZE * (sum(counts) > SIZE)
    assert merged.images == direct.images and merged.is_complete == direct.is_complete
    assert merged.shared([*one, *two])[0] == 1 and merged.shared(keys_of(3000, 2))[0] == 0


def test_what_is_no_sketch_is_none():
    good = ContentSketch.from_keys(keys_of(3)).to_json()
    for wrong in (None, [], {}, {**good, "hashes": "?"}, {**good, "hashes": 3}, {**good, "images": 2},
                  {**good, "images": "3"}, {**good, "hashes": good["hashes"][:8]}, {**good, "hashes": ""}):  # fmt: skip
        assert ContentSketch.from_json(wrong) is None
    empty = ContentSketch.from_json({"images": 0, "hashes": ""})
    assert empty is not None and empty.shared(keys_of(3)) == (0.0, True)
    assert ContentSketch(5, ()).shared(keys_of(3)) == (0.0, False)


def test_the_sentence_names_the_part():
    images, labels = random_images(100, 4, 4)
    split = ArraySplit(images[..., None], labels.astype(np.int32))
    sketch = sketch_of(split)
    assert describe_shared(sketch, split, "were trained on").startswith("All of these images were trained on,")
    half = ArraySplit(np.concatenate([images[:50], 255 - images[:50]])[..., None], split.labels)
    assert describe_shared(sketch, half, "were trained on").startswith("50 % of these images")
    other = ArraySplit(255 - images[..., None], split.labels)
    assert describe_shared(sketch, other, "were trained on") == ""


class Plain:
    """A split with nothing but the protocol, which counts the images that are read."""

    def __init__(self, images, labels):
        self.images, self.labels, self.count = images, labels, 0

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        self.count += len(indices)
        return self.images[indices]


def test_of_a_split_that_must_be_read_a_sample_is_read(monkeypatch):
    monkeypatch.setattr(content_sketch, "SAMPLE", 30)
    images, labels = random_images(300, 4, 4)
    split = Plain(images[..., None], labels)
    sketch = sketch_of(ArraySplit(images[..., None], labels.astype(np.int32)))
    assert describe_shared(sketch, split, "were trained on") and split.count == 30
