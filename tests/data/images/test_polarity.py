import numpy as np
import pytest
from photos import encoded

from zoo.data import loader
from zoo.data.dataset import EncodedSplit
from zoo.data.images.polarity import match_polarity
from zoo.data.images.preprocess import Preprocess
from zoo.data.loader import PIECE, eval_batches
from zoo.data.sources.open import open_dataset

PLAN = Preprocess((16, 16), (16, 16), polarity="light-on-dark")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Scanned sheets: files in colour, larger than any model sees them."""
    root = tmp_path_factory.mktemp("drawings")
    for n in range(48):
        sheet = np.full((120, 160, 3), 245, np.uint8)
        sheet[30 + n : 60 + n, 40 : 60 + n] = (20, 30, 60)
        path = root / "train" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(sheet))
    return open_dataset(root)


@pytest.fixture
def reads(monkeypatch):
    """How many images each call of `read` decodes."""
    counts = []
    original = EncodedSplit.read

    def read(self, indices):
        counts.append(len(indices))
        return original(self, indices)

    monkeypatch.setattr(EncodedSplit, "read", read)
    return counts


def test_large_drawings_are_measured_one_by_one(drawings, reads):
    matched = match_polarity(drawings, "light-on-dark")
    assert any("inverted" in note for note in matched.notes)
    assert set(reads) == {1} and len(reads) == 1 + len(drawings.splits["train"])
    assert match_polarity(drawings, "dark-on-light") is drawings
    assert match_polarity(matched, "light-on-dark") is matched


@pytest.mark.parametrize("once", [True, False])
def test_inverted_files_are_decoded_in_pieces(once, drawings, reads, monkeypatch):
    monkeypatch.setattr(loader, "CACHE_BYTES", 2**31 if once else 0)
    split = match_polarity(drawings, "light-on-dark").splits["train"]
    del reads[:]
    (batch,) = eval_batches(split, PLAN, batch_size=len(split), workers=2)
    assert max(reads) <= PIECE and sum(reads) == len(split)
    expected = loader.images_to_input(split.read(np.arange(len(split))), PLAN)
    np.testing.assert_array_equal(batch["image"], expected)
    assert batch["image"][:, 0, 0].max() < 64 < 128 < batch["image"].max()
