"""Linear probing: a linear classifier on the features of a network, trained by scikit-learn.

`probe` chooses the strength of the penalty by cross-validation, `fit_on_validation` on the validation split. Either
result is a kernel and a bias, which `zoo.analysis.linear_head` attaches to the network as its head.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from zoo.analysis.features import Features, Origin, require_finite
from zoo.arguments import check_types
from zoo.checkpoint.calibration import Calibration
from zoo.data.content_sketch import ContentSketch
from zoo.inference import metrics
from zoo.inference.calibrate import fit_calibration, temperature_of
from zoo.inference.softmax import log_probabilities

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C, the inverse of the L2 penalty, per 1,000 examples
FOLDS = 5
CROSS_VALIDATED = 10_000  # maximum number of examples used to choose the strength
UNSEEN_MARGIN = 20.0  # distance of the logit of a class without training examples below the mean of its row
CONSTANT = 1e-5  # standard deviation as a share of the mean below which a feature counts as constant: rounding errors

ClassWeights = Literal["none", "balanced"]


class ProbeResult(NamedTuple):
    """The result of a linear probe.

    Attributes:
        metrics: metrics of the test split, as `evaluate` returns them, with the calibration; of the validation split if
            there is no test.
        strength: C of the classifier, per 1,000 examples.
        cross_validated: mean accuracy over the folds at this strength; NaN if it was chosen on the validation split.
        folds: number of folds; 0 if it was chosen on the validation split.
        classifier: the scikit-learn pipeline of standardisation and classifier.
        split: the split of `metrics`: "test" or "validation".
        kernel: float64 [D, K] and
        bias: float64 [K]: the same classifier as one linear map, `features @ kernel + bias`, over all K classes.
        kind: "softmax" or "svm".
        class_names: one per column of `kernel`.
        about: a line on the origin of the features.
        origin: the checkpoint and the data; None if unknown.
        trained_on: splits that the classifier was trained on.
        validation: metrics of the validation split, if it was not trained on.
        images: sketch of the images that it was trained on; None if unknown.
        calibration: fitted on outputs for examples that the classifier, or that of a fold, was not trained on; None if
            there are too few.
        uncalibrated: reason if `calibration` is None or its temperature is 1.
    """

    metrics: metrics.Metrics
    strength: float
    cross_validated: float
    folds: int
    classifier: Any
    split: str
    kernel: np.ndarray
    bias: np.ndarray
    kind: str
    class_names: tuple[str, ...]
    about: str = ""
    origin: Origin | None = None
    trained_on: tuple[str, ...] = ("train",)
    validation: metrics.Metrics | None = None
    images: ContentSketch | None = None
    calibration: Calibration | None = None
    uncalibrated: str = ""


@check_types()
def probe(
    features: Features, kind: str = "softmax", *, seed: int = 0, class_weights: ClassWeights = "none"
) -> ProbeResult:
    """Train a linear classifier on the train and validation splits and evaluate it on the test split.

    Features are standardised. The strength of the penalty is chosen by cross-validation within train and validation,
    and the calibration is fitted on the outputs of the folds for their held-out examples. Without a test split the
    classifier is trained on train alone and evaluated on validation.

    Args:
        features: the result of `zoo.features` or `load_features`.
        kind: "softmax" (multinomial logistic regression, L2 penalty) or "svm" (linear, one against the rest, squared
            hinge loss).
        seed: seed of the folds.
        class_weights: "balanced" weights each example by N / (K * number of examples of its class).

    Returns:
        The metrics and the classifier.

    Raises:
        ValueError: for an unknown kind, without a train split or one to evaluate on, if train has only one class,
            or if a feature is not finite.

    Example:
        >>> features = zoo.features("torchvision:resnet18", "photos/")
        >>> probed = zoo.probe(features)
        >>> zoo.attach_head("torchvision:resnet18", probed).predict("photo.jpg")
    """
    held_out = "test" if "test" in features.splits else "validation"
    trained_on = tuple(name for name in ("train", "validation") if name in features.splits and name != held_out)
    if "train" not in trained_on or held_out not in features.splits:
        raise ValueError(
            "a probe requires a train split, and a test or validation split; the features have "
            f"{', '.join(features.splits)}"
        )
    require_finite(features, [*trained_on, held_out])
    rows, labels = _training_rows(features, trained_on)
    from sklearn.model_selection import cross_validate

    subset = np.random.default_rng(seed).permutation(len(labels))[:CROSS_VALIDATED]
    folds = _folds(labels[subset], seed)
    accuracy, classifiers = {}, {}
    with _IgnoreConvergence():
        for strength in STRENGTHS:
            classifier = _classifier(kind, strength, len(subset), class_weights)
            scored = cross_validate(classifier, rows[subset], labels[subset], cv=folds, return_estimator=True)
            accuracy[strength], classifiers[strength] = scored["test_score"].mean(), scored["estimator"]
        best = max(STRENGTHS, key=lambda strength: (round(accuracy[strength], 6), -strength))
        classifier = _classifier(kind, best, len(labels), class_weights).fit(rows, labels)
    num_classes = len(features.class_names)
    held_out_outputs = _held_out(rows[subset], labels[subset], folds, classifiers[best], kind, num_classes)
    calibration, reason = _calibrate(*held_out_outputs, "cross-validation")
    kernel, bias = linear_map(classifier, kind, num_classes)
    result = _evaluate(kernel, bias, kind, labels, *features.splits[held_out], features.class_names, calibration)
    return ProbeResult(
        result, best, float(accuracy[best]), len(folds), classifier, held_out, kernel, bias, kind,
        features.class_names, features.about, features.origin, trained_on, images=_sketch(features, trained_on),
        calibration=calibration, uncalibrated=reason,
    )  # fmt: skip


def _held_out(
    rows: np.ndarray, labels: np.ndarray, folds: Sequence[Any], classifiers: Sequence[Any], kind: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (logits float32 [M, K], labels [M]) of the folds' classifiers for the examples held out of each.

    Examples of a class that a fold has not trained on are left out: no classifier of all examples has such a class.
    """
    logits, truth = [], []
    for (_, held_out), classifier in zip(folds, classifiers, strict=True):
        known = held_out[np.isin(labels[held_out], classifier.classes_)]
        kernel, bias = linear_map(classifier, kind, num_classes)
        logits.append((rows[known] @ kernel + bias).astype(np.float32))
        truth.append(labels[known])
    return np.concatenate(logits), np.concatenate(truth)


def _calibrate(logits: np.ndarray, labels: np.ndarray, examples: str) -> tuple[Calibration | None, str]:
    """Fit the calibration of a linear classifier; arguments and result as in `fit_calibration`."""
    return fit_calibration(logits, np.asarray(jax.nn.logsumexp(logits, axis=-1)), labels, examples)


def _sketch(features: Features, splits: Sequence[str]) -> ContentSketch | None:
    """Return the sketch of the images of these splits, or None if that of one is unknown."""
    if any(name not in features.sketches for name in splits):
        return None
    return reduce(ContentSketch.merge, (features.sketches[name] for name in splits))


def fit_on_validation(
    features: Features, *, class_weights: ClassWeights = "none", on_fit: Callable[[int], Any] | None = None
) -> ProbeResult:
    """Train a softmax classifier on the train split, choosing the strength of its penalty on the validation split.

    The best strength has the highest accuracy, and among equals the lowest loss.

    Args:
        features: features with a train and a validation split.
        class_weights: as in `probe`.
        on_fit: called with the number of strengths tried.

    Returns:
        The classifier, with the metrics of the validation split and of the test split if there is one.
    """
    rows, labels = _training_rows(features, ("train",))
    kind, names = "softmax", features.class_names
    best: tuple[Any, ...] = ()
    for tried, strength in enumerate(STRENGTHS, 1):
        with _IgnoreConvergence():
            classifier = _classifier(kind, strength, len(labels), class_weights).fit(rows, labels)
        kernel, bias = linear_map(classifier, kind, len(names))
        result = _evaluate(kernel, bias, kind, labels, *features.splits["validation"], names)
        score = (result.accuracy, -result.loss)
        if not best or score > best[0]:
            best = (score, strength, classifier, kernel, bias)
        if on_fit:
            on_fit(tried)
    _, strength, classifier, kernel, bias = best
    held_out, truth = features.splits["validation"]
    known = np.isin(truth, classifier.classes_)  # to fit the others, the temperature would even out all probabilities
    logits = (held_out[known] @ kernel + bias).astype(np.float32)
    calibration, reason = _calibrate(logits, truth[known], "validation")
    results = {
        split: _evaluate(kernel, bias, kind, labels, *features.splits[split], names, calibration)
        for split in ("validation", "test") if split in features.splits
    }  # fmt: skip
    split = list(results)[-1]
    return ProbeResult(
        results[split], strength, float("nan"), 0, classifier, split, kernel, bias, kind, names, features.about,
        features.origin, ("train",), results["validation"], calibration=calibration, uncalibrated=reason,
    )  # fmt: skip


def _training_rows(features: Features, splits: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels of some splits; features that are constant up to rounding errors are 0."""
    parts = [features.splits[name] for name in splits]
    rows, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if len(np.unique(labels)) < 2:
        raise ValueError("a probe requires training examples of at least two classes")
    # Standardised, rounding errors would have the weight of any other feature.
    constant = rows.std(0, dtype=np.float64) <= CONSTANT * np.abs(rows.mean(0, dtype=np.float64))
    return np.where(constant, np.float32(0), rows) if constant.any() else rows, labels


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


def _classifier(kind: str, strength: float, examples: int, class_weights: ClassWeights) -> Any:
    """Return an untrained pipeline. C multiplies a sum over examples; scaled like this, the penalty per example is
    independent of their number."""
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
    weights = None if class_weights == "none" else class_weights
    return make_pipeline(StandardScaler(), kinds[kind](C=1000 * strength / examples, class_weight=weights))


class _IgnoreConvergence(warnings.catch_warnings):
    """Silence warnings that are expected for the weakest penalties, which are then not chosen."""

    def __enter__(self) -> Any:
        from sklearn.exceptions import ConvergenceWarning

        entered = super().__enter__()
        warnings.simplefilter("ignore", ConvergenceWarning)
        return entered


def linear_map(classifier: Any, kind: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standardisation and classifier as one linear map from features to the logits of all classes.

    With two classes scikit-learn scores only the second; the first then gets 0 (softmax) or minus that score (svm). A
    class without training examples gets the mean of the others' logits minus UNSEEN_MARGIN: it is never predicted, and
    the probabilities of the others stay the same.

    Args:
        classifier: a trained pipeline.
        kind: "softmax" or "svm".
        num_classes: number of classes K, with those that have no training examples.

    Returns:
        kernel float64 [D, K], bias float64 [K].
    """
    scaler, linear = classifier[0], classifier[-1]
    kernel = linear.coef_.astype(np.float64) / scaler.scale_
    bias = linear.intercept_.astype(np.float64) - kernel @ scaler.mean_
    if len(bias) == 1:
        sign = 0 if kind == "softmax" else -1
        kernel, bias = np.concatenate([sign * kernel, kernel]), np.concatenate([sign * bias, bias])
    full_kernel = np.tile(kernel.mean(0), (num_classes, 1))
    full_bias = np.full(num_classes, bias.mean() - UNSEEN_MARGIN)
    full_kernel[classifier.classes_], full_bias[classifier.classes_] = kernel, bias
    return np.ascontiguousarray(full_kernel.T), full_bias


def evaluate_head(probed: ProbeResult, rows: np.ndarray, labels: np.ndarray) -> metrics.Metrics:
    """Return the metrics of a probe on features [N, D] and labels [N], without its calibration."""
    return _evaluate(probed.kernel, probed.bias, probed.kind, labels, rows, labels, probed.class_names)


def _evaluate(
    kernel: np.ndarray,
    bias: np.ndarray,
    kind: str,
    trained_labels: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    calibration: Calibration | None = None,
) -> metrics.Metrics:
    logits = (rows @ kernel + bias).astype(np.float32)
    logs = jax.nn.log_softmax(logits)
    losses = -logs[np.arange(len(rows)), labels]
    sums = metrics.batch_sums(jax.numpy.asarray(logits), jax.numpy.asarray(labels), jax.numpy.ones(len(rows)), losses)
    result = metrics.summarise(metrics.add(None, sums), names, np.exp(np.asarray(logs)), labels)
    if (temperature := temperature_of(calibration)) != 1:
        scaled = log_probabilities(logits, temperature)
        losses = -scaled[np.arange(len(rows)), labels]
        result = metrics.calibrated(result, losses, np.exp(scaled).astype(np.float32), labels)
    if calibration is not None:
        unlike = np.asarray(jax.nn.logsumexp(logits, axis=-1)) < calibration.energy_threshold
        result = dataclasses.replace(result, unlike_training=float(np.mean(unlike)))
    notes = [*result.notes]
    unknown = [names[label] for label in np.unique(labels) if label not in trained_labels]
    if unknown:
        notes.append(f"no training examples of {', '.join(unknown)}: counted as wrong, with a large finite loss")
    if kind == "svm":
        notes.append("the scores of an SVM are margins: loss and calibration error are those of a softmax over them")
    return dataclasses.replace(result, notes=tuple(notes))
