"""Sources of data sets: everything that `--data` can name."""

from zoo.data.dataset import Dataset
from zoo.data.sources.arrays import from_arrays
from zoo.data.sources.open import names_data, open_dataset
from zoo.data.splits import ArraySplit, EncodedSplit, Split

__all__ = ["ArraySplit", "Dataset", "EncodedSplit", "Split", "from_arrays", "names_data", "open_dataset"]
