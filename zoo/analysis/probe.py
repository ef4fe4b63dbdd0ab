"""Linear probing: a network as a fixed feature extractor, and a linear classifier on its features.

`features` computes the activations of an endpoint, `probe` trains the classifier and evaluates it on the test split.
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
from zoo.data.images.measure import as_trained
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.loader import eval_batches
from zoo.data.sources import from_arrays, open_dataset
from zoo.distributed.compile import jit_for_platform
from zoo.inference import metrics
from zoo.inference.evaluate import BATCH_SIZE

POOLS = ("mean", "flatten")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C, the inverse of the L2 penalty, per 1,000 examples
FOLDS = 5
CROSS_VALIDATED = 10_000  # maximum number of examples used to choose the strength
UNSEEN_MARGIN = 20.0  # distance of the logit of a class without training examples below the lowest of its row


class Features(NamedTuple):
    """The features of a data set.

    Attributes:
        splits: name -> (features float32 [N, D], labels int32 [N]).
        class_names: one name per label.
        about: a line on their origin: endpoint, model and data set.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    about: str = ""

    def save(self, file: str | Path) -> None:
        """Write an .npz with "train_features", "train_labels", … for every split, "class_names" and "about"."""
        arrays: dict[str, Any] = {
            f"{name}_{part}": array
            for name, pair in self.splits.items()
            for part, array in zip(("features", "labels"), pair, strict=True)
        }
        with open(file, "wb") as stream:  # given a name, NumPy would append .npz to it
            np.savez(stream, **arrays, class_names=np.array(self.class_names), about=np.array(self.about))


def load_features(file: str | Path) -> Features:
    """Read a file that `Features.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file of another kind.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("not an .npz archive")
        with np.load(file, allow_pickle=False) as arrays:
            names = [key.removesuffix("_features") for key in arrays.files if key.endswith("_features")]
            splits = {name: (arrays[f"{name}_features"], arrays[f"{name}_labels"]) for name in names}
            return Features(splits, tuple(arrays["class_names"].tolist()), str(arrays["about"]))
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file}: was not written by `zoo features` ({error})") from None


def endpoints(model: nn.Module, preprocess: Preprocess) -> dict[str, tuple[int, ...]]:
    """Return the shape of every endpoint for one image, by name: the stages first, in order."""
    shape = preprocess.input_shape
    images = jax.ShapeDtypeStruct((1, *shape), np.float32)

    def forward(images):
        return model.init_with_output(jax.random.key(0), images)[0][1]

    shapes = {name: end.shape[1:] for name, end in jax.eval_shape(forward, images).items()}
    order = [
        *(stage for stage in model.stages if stage in shapes),
        *(name for name in shapes if name not in model.stages),
    ]
    return {name: shapes[name] for name in order}


def features(
    checkpoint: "api.Checkpoint | str | Path",
    data: str | Path | Dataset | tuple[Any, Any],
    at: str = "features",
    *,
    splits: Sequence[str] | None = None,
    pool: str = "mean",
    data_dir: str | None = None,
    limit: int = 0,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
) -> Features:
    """Compute the activations of an endpoint for every image of a data set, in evaluation mode.

    Args:
        checkpoint: a Checkpoint, or a folder or name that `load` takes. Its card decides how images are preprocessed.
        data: a data set, its name or folder, or arrays (images, labels). Its classes may differ from the checkpoint's.
        at: the endpoint: a stage, "features" or "logits".
        splits: names of the splits; all by default.
        pool: reduction of endpoints of shape [H, W, C]: "mean" over positions gives C features, "flatten" H * W * C.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split; 0: all.
        batch_size: images per batch.
        on_batch: called with the number of images done so far.

    Returns:
        The features of every split.

    Raises:
        ValueError: for an unknown endpoint, split or pooling, naming the known ones.
    """
    if isinstance(data, tuple):
        data = from_arrays(data)
    if not isinstance(data, (str, Path, Dataset)):
        kind = type(data).__name__
        raise ValueError(f"features: data has type {kind}; give a name, folder, Dataset or tuple (images, labels)")
    loaded = api.load(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    if limit:
        dataset = limited(dataset, limit)
    preprocess = loaded.card.preprocess
    dataset = as_trained(dataset, preprocess)
    known = endpoints(loaded.model, preprocess)
    if at not in known:
        raise ValueError(f"{loaded.card.model} has no endpoint {at!r}; it has {', '.join(known)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r}: choose from {', '.join(POOLS)}")
    step, variables = _feature_step(loaded.model, preprocess, at, pool), jax.device_put(loaded.variables)
    done, arrays = 0, {}
    for name in splits or dataset.splits:
        if name not in dataset.splits:
            raise ValueError(f"{dataset.name}: has no split {name!r}; it has {', '.join(dataset.splits)}")
        rows, split = [], dataset.splits[name]
        for batch in eval_batches(split, preprocess, batch_size=batch_size):
            count = int((batch["weight"] > 0).sum())
            rows.append(np.asarray(step(variables, batch["image"]))[:count])
            done += count
            if on_batch:
                on_batch(done)
        arrays[name] = np.concatenate(rows), np.asarray(split.labels, np.int32)
    return Features(arrays, tuple(dataset.class_names), f"{at} of {loaded.card.model} on {dataset.name}")


@lru_cache(maxsize=8)
def _feature_step(model: nn.Module, preprocess: Preprocess, at: str, pool: str) -> Callable:
    def forward(variables, images):
        _, ends = model.apply(variables, normalise(images, preprocess))
        end = ends[at].astype(np.float32)
        return end.mean((1, 2)) if end.ndim == 4 and pool == "mean" else end.reshape(len(end), -1)

    return jit_for_platform(forward)


class ProbeResult(NamedTuple):
    """The result of a linear probe.

    Attributes:
        metrics: metrics of the test split, as `evaluate` returns them.
        strength: C of the classifier, per 1,000 examples.
        cross_validated: mean accuracy over the folds at this strength.
        folds: number of folds.
        classifier: the scikit-learn pipeline of standardisation and classifier.
    """

    metrics: metrics.Metrics
    strength: float
    cross_validated: float
    folds: int
    classifier: Any


def probe(features: Features, kind: str = "softmax", *, seed: int = 0) -> ProbeResult:
    """Train a linear classifier on the train and validation splits and evaluate it on the test split.

    Features are standardised. The strength of the penalty is chosen by cross-validation within train and validation.

    Args:
        features: the result of `zoo.features` or `load_features`.
        kind: "softmax" (multinomial logistic regression, L2 penalty) or "svm" (linear, one against the rest, squared
            hinge loss).
        seed: seed of the folds.

    Returns:
        The metrics on the test split and the classifier.

    Raises:
        ValueError: for an unknown kind, without a train or test split, or if train has only one class.
    """
    for name in ("train", "test"):
        if name not in features.splits:
            raise ValueError(
                f"a probe requires a train and a test split; the features have {', '.join(features.splits)}"
            )
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_score

    parts = [features.splits[name] for name in ("train", "validation") if name in features.splits]
    rows, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if len(np.unique(labels)) < 2:
        raise ValueError("a probe requires training examples of at least two classes")
    subset = np.random.default_rng(seed).permutation(len(labels))[:CROSS_VALIDATED]
    folds = _folds(labels[subset], seed)
    with warnings.catch_warnings():
        # Expected for the weakest penalties, which are then not chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracy = {}
        for strength in STRENGTHS:
            # C multiplies a sum over examples; scaled like this, the penalty per example is independent of N.
            classifier = _classifier(kind, 1000 * strength / len(subset))
            accuracy[strength] = cross_val_score(classifier, rows[subset], labels[subset], cv=folds).mean()
        best = max(STRENGTHS, key=lambda strength: (round(accuracy[strength], 6), -strength))
        classifier = _classifier(kind, 1000 * best / len(labels)).fit(rows, labels)
    result = _evaluate(classifier, kind, *features.splits["test"], features.class_names)
    return ProbeResult(result, best, float(accuracy[best]), len(folds), classifier)


def _folds(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (training rows, validation rows) of every fold, leaving out folds with only one class to train on.

    Folds are stratified unless a class has a single example.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    fewest = int(np.unique(labels, return_counts=True)[1].min())
    kind, count = (StratifiedKFold, fewest) if fewest >= 2 else (KFold, len(labels))
    folds = kind(min(FOLDS, count), shuffle=True, random_state=seed).split(labels[:, None], labels)
    usable = [(train, validation) for train, validation in folds if len(np.unique(labels[train])) > 1]
    if not usable:
        raise ValueError("a probe requires a class with more than one training example to choose its penalty")
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
        raise ValueError(f"probe {kind!r}: choose from {', '.join(kinds)}")
    return make_pipeline(StandardScaler(), kinds[kind](C=strength))


def _evaluate(
    classifier: Any, kind: str, rows: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> metrics.Metrics:
    scores = classifier.decision_function(rows)
    if scores.ndim == 1:  # with two classes scikit-learn returns only the score of the second
        scores = np.stack([np.zeros_like(scores), scores], 1) if kind == "softmax" else np.stack([-scores, scores], 1)
    # A class without training examples is never predicted and does not change the probabilities of the others.
    logits = np.repeat(scores.min(1, keepdims=True).astype(np.float32) - UNSEEN_MARGIN, len(names), axis=1)
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
