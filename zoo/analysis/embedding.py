"""Features of a data set in the plane: PCA, t-SNE and, where it is installed, UMAP."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo import loading
from zoo.analysis import features as extraction
from zoo.data.dataset import Dataset, limited
from zoo.data.images.measure import as_trained
from zoo.data.images.preprocess import images_to_input
from zoo.data.sources import open_dataset
from zoo.inference.predict import Checkpoint

MAX_POINTS = 2_000  # t-SNE of more takes minutes
COMPONENTS = 50  # principal components that t-SNE reads, as in van der Maaten and Hinton 2008, section 4.2


class Embedding(NamedTuple):
    """Points in the plane, one for each image.

    Attributes:
        pca: the first two principal components, float32 [N, 2].
        explained: their shares of the variance.
        tsne: float32 [N, 2]; None for fewer than four images.
        umap: float32 [N, 2]; None unless requested, and for fewer than four images.
        labels: int32 [N].
        class_names: one name per label.
        thumbnails: the network's inputs, uint8 [N, H, W, C].
        about: a line on the origin of the features.
    """

    pca: np.ndarray
    explained: tuple[float, float]
    tsne: np.ndarray | None
    labels: np.ndarray
    class_names: tuple[str, ...]
    thumbnails: np.ndarray
    about: str
    umap: np.ndarray | None = None


def require_umap() -> None:
    """Raise ImportError unless umap-learn is installed."""
    if importlib.util.find_spec("umap") is None:
        raise ImportError("UMAP: umap-learn is not installed; type pip install 'jax-model-zoo[umap]'")


def embed(
    checkpoint: Checkpoint | str | Path,
    data: str | Path | Dataset,
    at: str = "features",
    *,
    split: str = "",
    data_dir: str | Path | None = None,
    limit: int = MAX_POINTS,
    seed: int = 0,
    umap: bool = False,
    on_batch: Callable[[int], Any] | None = None,
) -> Embedding:
    """Compute the features of a data set and project them onto the plane.

    Args:
        checkpoint: a Checkpoint, or a folder or name that `load` takes.
        data: a data set, or its name or folder. Its classes may differ from the checkpoint's.
        at: the endpoint: a stage, "features" or "logits".
        split: name of the split; by default test if there is one, else the last.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of images, evenly spaced.
        seed: seed of t-SNE and UMAP.
        umap: also project by UMAP.
        on_batch: called with the number of images done.

    Raises:
        ValueError: for an unknown endpoint or split, fewer than two images, and features that are not finite.
        ImportError: for UMAP without umap-learn.
    """
    if umap:
        require_umap()
    loaded = loading.open_checkpoint(checkpoint)
    dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    dataset = limited(dataset, limit or MAX_POINTS)
    split = split or ("test" if "test" in dataset.splits else list(dataset.splits)[-1])
    features = extraction.features(loaded, dataset, at, splits=[split], on_batch=on_batch)
    rows, labels = features.splits[split]
    if len(rows) < 2:
        raise ValueError(f"{dataset.name}: its {split} split has one image; a projection requires at least two")
    preprocess = loaded.card.preprocess
    records = as_trained(dataset, preprocess).splits[split]
    thumbnails = images_to_input(records.read(np.arange(len(rows))), preprocess)
    extraction.require_finite(features, [split])
    components, explained = principal_components(rows, min(COMPONENTS, *rows.shape))
    return Embedding(
        components[:, :2], (explained[0], explained[1] if len(explained) > 1 else 0.0), project_tsne(components, seed),
        labels, features.class_names, thumbnails, f"{features.about}, {split} split",
        project_umap(components, seed) if umap else None,
    )  # fmt: skip


def principal_components(rows: np.ndarray, count: int) -> tuple[np.ndarray, Sequence[float]]:
    """Return (the first principal components of rows [N, D], float32 [N, max(count, 2)], their shares of the variance).

    Columns beyond the rank are 0.
    """
    centred = np.asarray(rows, np.float64) - rows.mean(0, dtype=np.float64)
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary; the largest loading is made positive, so that equal features look equal.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    scores = left * (scale * np.where(signs == 0, 1, signs))
    shares = np.square(scale) / max(np.square(scale).sum(), 1e-300)
    components = np.zeros((len(rows), max(count, 2)), np.float32)
    kept = min(count, scores.shape[1])
    components[:, :kept] = scores[:, :kept]
    return components, shares.tolist()


def project_tsne(rows: np.ndarray, seed: int) -> np.ndarray | None:
    """Return the t-SNE projection of rows [N, D] (van der Maaten and Hinton 2008), float32 [N, 2]."""
    if len(rows) < 4:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows).astype(np.float32)


def project_umap(rows: np.ndarray, seed: int) -> np.ndarray | None:
    """Return the UMAP projection of rows [N, D] (McInnes et al. 2018, arXiv:1802.03426), float32 [N, 2]."""
    if len(rows) < 4:
        return None
    require_umap()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the single thread that a seed requires
        from umap import UMAP

        # The spectral layout needs more points than dimensions.
        init = "spectral" if len(rows) > 10 else "random"
        neighbours = min(15, len(rows) - 1)
        return np.asarray(UMAP(n_neighbors=neighbours, init=init, random_state=seed).fit_transform(rows), np.float32)
