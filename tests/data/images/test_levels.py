"""Which value is white: for a data set, and for a lone image."""

import re

import numpy as np
import pytest

from zoo.data.images.levels import (
    PixelRangeError,
    choose_array_white,
    choose_white,
    find_white,
    kind_of_mode,
    scale_to_8_bits,
    value_range,
)


@pytest.mark.parametrize(
    ("mode", "file_format", "kind"),
    [
        ("F", "TIFF", "float"), ("F", None, "float"), ("I;16", "TIFF", "16-bit"), ("I;16B", "TIFF", "16-bit"),
        ("I", "PNG", "16-bit"), ("I", "PPM", "16-bit"), ("I", "TIFF", "integer"), ("I", None, "integer"),
        ("L", "PNG", None), ("RGB", "JPEG", None), ("1", "PNG", None), ("P", "GIF", None),
    ],
)  # fmt: skip
def test_kinds_of_modes(mode, file_format, kind):
    assert kind_of_mode(mode, file_format) == kind


@pytest.mark.parametrize(
    ("peak", "kind", "white"),
    [
        (0.3, "float", None), (1.05, "float", None), (1.06, "float", 3), (16, "float", 31), (127, "float", 127),
        (128, "float", 255), (267, "float", 255), (268, "float", 511), (300, "float", 511), (1e6, "float", 2**20 - 1),
        (0, "integer", 255), (255, "16-bit", 255), (256, "integer", 1023), (1023, "16-bit", 1023),
        (1024, "16-bit", 4095), (4095, "16-bit", 4095), (4096, "16-bit", 16383), (16384, "16-bit", 65535),
        (65535, "integer", 65535), (65536, "integer", 131071), (2**31 - 1, "integer", 2**31 - 1),
    ],
)  # fmt: skip
def test_white_of_a_data_set_of_files(peak, kind, white):
    assert choose_white(peak, kind) == white


@pytest.mark.parametrize(
    ("low", "peak", "kind", "white"),
    [
        (0, 1, "integer", 1), (0, 0, "integer", 1), (0, 2, "integer", None), (0, 127, "integer", None),
        (0, 128, "integer", 255), (0, 255, "integer", 255), (0, 256, "integer", None), (0, 511, "integer", None),
        (0, 512, "integer", 1023), (0, 2047, "integer", None), (0, 2048, "integer", 4095), (0, 8191, "integer", None),
        (0, 8192, "integer", 16383), (0, 32767, "integer", None), (0, 32768, "integer", 65535),
        (0, 65536, "integer", None), (-1, 255, "integer", None), (0, 2**31 - 1, "integer", 2**31 - 1),
        (0, 1.05, "float", 1), (0, 1.06, "float", None), (-0.05, 1, "float", 1), (-0.06, 1, "float", None),
        (0, 127, "float", None), (-12, 267, "float", 255), (-13, 255, "float", None), (0, 268, "float", None),
    ],
)  # fmt: skip
def test_white_of_a_data_set_of_arrays(low, peak, kind, white):
    if white is None:
        with pytest.raises(PixelRangeError, match=f"{low:g} to {peak:g}"):
            choose_array_white(low, peak, kind)
    else:
        assert choose_array_white(low, peak, kind) == white


@pytest.mark.parametrize(
    ("peak", "kind", "recorded", "white"),
    [
        (4095, "16-bit", 4095, 4095), (3, "16-bit", 4095, 4095), (4096, "16-bit", 4095, 65535),
        (1, "16-bit", 1, 65535), (1, "integer", 1, 1), (200, "integer", 1, 255), (40000, "integer", 1, 65535),
        (1.05, "float", 1, 1), (4300, "integer", 4095, None), (4299, "float", 4095, 4095), (4300, "float", 4095, None),
        (0.5, "float", 255, 255), (90, "float", 255, 255), (90, "integer", 255, 255), (90, "integer", None, None),
        (0.5, "float", None, 1), (90, "float", None, None), (9, "16-bit", None, None), (8, "16-bit", None, 65535),
        (4096, "16-bit", None, 65535), (2**30, "integer", None, None), (2**30 + 1, "integer", None, 2**31 - 1),
    ],
)  # fmt: skip
def test_white_of_a_lone_file(peak, kind, recorded, white):
    if white is None:
        with pytest.raises(PixelRangeError, match=re.escape(f"{peak:g}")):
            find_white(0, peak, kind, recorded)
    else:
        assert find_white(0, peak, kind, recorded) == white


def test_negative_values_are_an_overshoot_or_an_error():
    assert find_white(-0.05, 1, "float") == 1 and find_white(-200, 4095, "float", 4095) == 4095
    for low, peak, kind, recorded in ((-0.06, 1, "float", None), (-1, 255, "integer", None), (-1, 9, "integer", 4095)):
        with pytest.raises(PixelRangeError, match="negative"):
            find_white(low, peak, kind, recorded)


def test_unit_floats_are_ambiguous_as_arrays_for_a_model_of_0_to_255():
    with pytest.raises(PixelRangeError, match=re.escape("0..255")):
        find_white(0, 0.5, "float", 255, array=True)
    assert find_white(0, 0, "float", 255, array=True) == 255 == find_white(0, 1.06, "float", 255, array=True)


def test_ranges():
    assert value_range(np.array([[3, -1]])) == (-1, 3) and value_range(np.zeros((0, 2))) == (0, 0)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(PixelRangeError, match="NaN or infinity"):
            value_range(np.array([0, bad]))


@pytest.mark.parametrize("white", [1, 255, 300, 4095])
def test_scaling_in_blocks_clips_and_rounds(white):
    values = np.linspace(-0.1, 1.1, 1_200_000).reshape(2, 1000, 600) * white
    want = np.rint(np.clip(values * (255 / white), 0, 255))
    got = scale_to_8_bits(values, white)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
