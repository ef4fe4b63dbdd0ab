import numpy as np
import pytest

from zoo.data.dataset import ArraySplit
from zoo.data.images.sampling import sample_images


class Photos:
    """A split of photographs of one size, each filled with its index; records what is read."""

    def __init__(self, count, shape=(90, 120, 1), sizes=None):
        self.labels = np.zeros(count, np.int32)
        self.shape, self.read_indices = shape, []
        if sizes is not None:
            self.image_sizes = lambda: sizes

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        self.read_indices.append(np.asarray(indices).tolist())
        return [np.full(self.shape, index % 256, np.uint8) for index in indices]


@pytest.mark.parametrize("count, limit", [(7, 3), (7, 7), (7, 100), (1, 1)])
def test_arrays_are_sampled_at_even_distances(count, limit):
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    sample = sample_images(ArraySplit(images, np.zeros(count, np.int32)), (1, 1), limit)
    expected = [i * count // min(limit, count) for i in range(min(limit, count))]
    assert sample.ravel().tolist() == expected


def test_photographs_are_sampled_at_a_tenth_and_shrunk_until_they_cover_the_size():
    split = Photos(57)
    sample = sample_images(split, (30, 30), 200)
    assert [image[0, 0, 0] for image in sample] == [i * 57 // 20 for i in range(20)]
    assert {image.shape for image in sample} == {(30, 40, 1)}
    assert sorted(map(len, split.read_indices)) == [1] * 21  # one at a time, after a first look


@pytest.mark.parametrize(
    "cover, shape", [((90, 90), (90, 120, 1)), ((89, 89), (89, 118, 1)), ((200, 200), (90, 120, 1))]
)
def test_photographs_are_never_enlarged(cover, shape):
    assert {image.shape for image in sample_images(Photos(10), cover, 100)} == {shape}


@pytest.mark.parametrize("side, small", [(64, True), (65, False)])
def test_files_of_small_images_are_read_at_once(side, small):
    split = Photos(30, (side, side, 1))
    assert len(sample_images(split, (8, 8), 20)) == (20 if small else 2)


def test_known_sizes_decide_which_files_are_small():
    """The median area of all files, not the first one."""
    sizes = np.array([(8, 8), (100, 100), (100, 100)], np.int32)
    assert len(sample_images(Photos(3, (8, 8, 1), sizes), (8, 8), 20)) == 2
    assert len(sample_images(Photos(3, (8, 8, 1), sizes[[0, 0, 1]]), (8, 8), 20)) == 3
