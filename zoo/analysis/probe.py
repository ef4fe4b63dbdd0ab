"""A network as a fixed feature extractor: what an endpoint says of each image, and a linear classifier on that.

`features` computes them, `probe` fits and tests the classifier. The test split is looked at once, at the end.
"""

import dataclasses
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from zoo import api
from zoo.data.dataset import Dataset, limited
from zoo.data.images.polarity import match_polarity
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.loader import eval_batches
from zoo.data.sources import open_dataset
from zoo.distributed.compile import jit_for_platform
from zoo.inference import metrics
from zoo.inference.evaluate import BATCH_SIZE

POOLS = ("mean", "flatten")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C, the inverse of the penalty, for 1,000 examples
FOLDS = 5
CROSS_VALIDATED = 10_000  # examples at most that choose the strength
UNKNOWN = 20.0  # below the least score of a row: what a class without examples is given


class Features(NamedTuple):
    """splits: name -> (float32 [N, D], labels int32 [N]). about: a line on where they are from."""

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    about: str = ""

    def save(self, file: str | Path) -> None:
        """An .npz: "train_features", "train_labels", … of each split, "class_names", "about"."""
        arrays: dict[str, Any] = {
            f"{name}_{what}": array
            for name, pair in self.splits.items()
            for what, array in zip(("features", "labels"), pair, strict=True)
        }
        with open(file, "wb") as stream:  # of a name, NumPy makes another one unless it ends in .npz
            np.savez(stream, **arrays, class_names=np.array(self.class_names), about=np.array(self.about))


def load_features(file: str | Path) -> Features:
    """What `Features.save` wrote. FileNotFoundError; ValueError for another kind of file."""
    if not Path(file).exists():
        raise FileNotFoundError(f"{file}: there is no such file")
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("no .npz archive")
        with np.load(file, allow_pickle=False) as arrays:
            names = [key.removesuffix("_features") for key in arrays.files if key.endswith("_features")]
            splits = {name: (arrays[f"{name}_features"], arrays[f"{name}_labels"]) for name in names}
            return Features(splits, tuple(arrays["class_names"].tolist()), str(arrays["about"]))
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file}: is not a file of `zoo features` ({error})") from None


def endpoints(model: nn.Module, preprocess: Preprocess) -> dict[str, tuple[int, ...]]:
    """Name -> shape of one image's output, of every endpoint of the model; stages first, in their order."""
    shape = preprocess.input_shape
    images = jax.ShapeDtypeStruct((1, *shape), np.float32)

    def forward(images):
        return model.init_with_output(jax.random.key(0), images)[0][1]

    found = {name: end.shape[1:] for name, end in jax.eval_shape(forward, images).items()}
    order = [
        *(stage for stage in model.stages if stage in found),
        *(name for name in found if name not in model.stages),
    ]
    return {name: found[name] for name in order}


def features(
    checkpoint: "api.Checkpoint | str | Path",
    data: str | Path | Dataset,
    at: str = "features",
    *,
    splits: Sequence[str] | None = None,
    pool: str = "mean",
    data_dir: str | None = None,
    limit: int = 0,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
) -> Features:
    """What endpoint `at` of a checkpoint says of every image, in evaluation, as the card's preprocess wants them.

    checkpoint: what `load` takes, or what it or `fit` returned. splits: those wanted, all by default. pool: of
    endpoints [H, W, C], "mean" over positions gives C numbers, "flatten" H * W * C. The data's classes need not be the
    checkpoint's. ValueError for an endpoint or split that is not there, naming those that are.
    """
    loaded = api.load(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    if limit:
        dataset = limited(dataset, limit)
    preprocess = loaded.card.preprocess
    dataset = match_polarity(dataset, preprocess.polarity)
    known = endpoints(loaded.model, preprocess)
    if at not in known:
        raise ValueError(f"{loaded.card.model} has no endpoint {at!r}; it has {', '.join(known)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r}: is one of {', '.join(POOLS)}")
    step, variables, done, found = _step(loaded.model, preprocess, at, pool), jax.device_put(loaded.variables), 0, {}
    for name in splits or dataset.splits:
        if name not in dataset.splits:
            raise ValueError(f"{dataset.name}: has no split {name!r}; it has {', '.join(dataset.splits)}")
        rows, split = [], dataset.splits[name]
        for batch in eval_batches(split, preprocess, batch_size=batch_size):
            real = int((batch["weight"] > 0).sum())
            rows.append(np.asarray(step(variables, batch["image"]))[:real])
            done += real
            if on_batch:
                on_batch(done)
        found[name] = np.concatenate(rows), np.asarray(split.labels, np.int32)
    return Features(found, tuple(dataset.class_names), f"{at} of {loaded.card.model} on {dataset.name}")


@lru_cache(maxsize=8)
def _step(model: nn.Module, preprocess: Preprocess, at: str, pool: str) -> Callable:
    def forward(variables, images):
        _, ends = model.apply(variables, normalise(images, preprocess))
        end = ends[at].astype(np.float32)
        return end.mean((1, 2)) if end.ndim == 4 and pool == "mean" else end.reshape(len(end), -1)

    return jit_for_platform(forward)


class Probed(NamedTuple):
    """metrics: of the test split, as of `evaluate`. strength: the C that was chosen, by this cross-validated accuracy
    over so many folds. classifier: of scikit-learn, standardisation included."""

    metrics: metrics.Metrics
    strength: float
    cross_validated: float
    folds: int
    classifier: Any


def probe(found: Features, kind: str = "softmax", *, seed: int = 0) -> Probed:
    """A linear classifier on features: fitted on train and validation, tested on test.

    kind: "softmax" (multinomial logistic regression, L2) or "svm" (linear, one against the rest, squared hinge).
    Features are standardised. The strength of the penalty is chosen by cross-validation within train and validation;
    the test split takes no part in it. ValueError where there is no train or test split, or one class alone.
    """
    for name in ("train", "test"):
        if name not in found.splits:
            raise ValueError(f"a probe needs a train and a test split; there are {', '.join(found.splits)}")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_score

    parts = [found.splits[name] for name in ("train", "validation") if name in found.splits]
    rows, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if len(np.unique(labels)) < 2:
        raise ValueError("a probe needs examples of two classes at least")
    chosen = np.random.default_rng(seed).permutation(len(labels))[:CROSS_VALIDATED]
    folds = _folds(labels[chosen], seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at the weakest penalties, which are not the best then
        accuracy = {}
        for strength in STRENGTHS:
            # C weighs the sum over examples: per example the penalty is the same however many there are.
            classifier = _classifier(kind, 1000 * strength / len(chosen))
            accuracy[strength] = cross_val_score(classifier, rows[chosen], labels[chosen], cv=folds).mean()
        best = max(STRENGTHS, key=lambda strength: (round(accuracy[strength], 6), -strength))
        classifier = _classifier(kind, 1000 * best / len(labels)).fit(rows, labels)
    result = _tested(classifier, kind, *found.splits["test"], found.class_names)
    return Probed(result, best, float(accuracy[best]), len(folds), classifier)


def _folds(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit, rows to score) of each fold; those that would be fitted to one class alone are left out."""
    from sklearn.model_selection import KFold, StratifiedKFold

    fewest = int(np.unique(labels, return_counts=True)[1].min())
    kind, count = (StratifiedKFold, fewest) if fewest >= 2 else (KFold, len(labels))
    folds = kind(min(FOLDS, count), shuffle=True, random_state=seed).split(labels[:, None], labels)
    usable = [(fit, score) for fit, score in folds if len(np.unique(labels[fit])) > 1]
    if not usable:
        raise ValueError("a probe needs more than one example of a class: there is nothing to choose its penalty by")
    return usable


def _classifier(kind: str, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    kinds = {
        "softmax": partial(LogisticRegression, max_iter=1000),
        "svm": partial(LinearSVC, dual="auto", random_state=0, max_iter=5000),
    }
    if kind not in kinds:
        raise ValueError(f"probe {kind!r}: is one of {', '.join(kinds)}")
    return make_pipeline(StandardScaler(), kinds[kind](C=strength))


def _tested(classifier: Any, kind: str, rows: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> metrics.Metrics:
    scores = classifier.decision_function(rows)
    if scores.ndim == 1:  # of two classes scikit-learn gives the second one's alone
        scores = np.stack([np.zeros_like(scores), scores], 1) if kind == "softmax" else np.stack([-scores, scores], 1)
    # A class without examples is never the answer, and as unlikely as makes no difference to the others.
    logits = np.repeat(scores.min(1, keepdims=True).astype(np.float32) - UNKNOWN, len(names), axis=1)
    logits[:, classifier.classes_] = scores
    logs = jax.nn.log_softmax(logits)
    losses = -logs[np.arange(len(rows)), labels]
    sums = metrics.batch_sums(jax.numpy.asarray(logits), jax.numpy.asarray(labels), jax.numpy.ones(len(rows)), losses)
    result = metrics.summarise(metrics.add(None, sums), names, np.exp(np.asarray(logs)), labels)
    notes = [*result.notes]
    unknown = [names[label] for label in np.unique(labels) if label not in classifier.classes_]
    if unknown:
        notes.append(f"no training examples of {', '.join(unknown)}: counted as wrong, with a large finite loss")
    if kind == "svm":
        notes.append("the scores of an SVM are margins: loss and calibration error are those of a softmax over them")
    return dataclasses.replace(result, notes=tuple(notes))
