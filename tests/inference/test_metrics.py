"""Metrics against scikit-learn and NumPy, for every division of a split into batches."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

from zoo.inference import metrics
from zoo.inference.metrics import (
    DENSE_CLASSES,
    add,
    batch_sums,
    calibration_error,
    confusion_from_json,
    format_report,
    roc_auc,
    summarise,
)  # fmt: skip

sums_of = jax.jit(batch_sums)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def table(name, n=60, k=7, seed=0):
    """Return logits [n, k] and labels [n] of a named, possibly degenerate, case."""
    rng = np.random.default_rng(seed)
    if name == "two classes":
        k = 2
    elif name == "three classes":
        k = 3
    elif name == "one example":
        n = 1
    logits = rng.normal(size=(n, k)).astype(np.float32)
    labels = rng.integers(0, k, n).astype(np.int32)
    logits[np.arange(n), labels] += 1
    if name == "ties":
        logits = np.round(logits)
    elif name == "all equal":
        logits[:] = 2
    elif name == "one class":
        labels[:] = 3
    elif name == "missing classes":
        labels = np.where(labels > 3, 1, labels)
        logits[:, 6] -= 100
    return logits, labels


TABLES = (
    "random",
    "ties",
    "all equal",
    "one class",
    "missing classes",
    "two classes",
    "three classes",
    "one example",
)
every_table = pytest.mark.parametrize("name", TABLES)


def total_of(logits, labels, losses=None, batch=16, padding=4):
    """Return the sums over batches of one size, with NaN and infinity in the padding."""
    total, k = None, logits.shape[1]
    losses = np.ones(len(labels), np.float32) if losses is None else losses
    for start in range(0, len(labels), batch):
        rows = slice(start, start + batch)
        count = len(labels[rows])
        fill = batch + padding - count
        total = add(
            total,
            sums_of(
                np.concatenate([logits[rows], np.full((fill, k), np.nan, np.float32)]),
                np.concatenate([labels[rows], np.zeros(fill, np.int32)]),
                np.concatenate([np.ones(count, np.float32), np.zeros(fill, np.float32)]),
                np.concatenate([losses[rows], np.full(fill, np.inf, np.float32)]),
            ),
        )
    return total


@every_table
def test_metrics_agree_with_scikit_learn(name):
    logits, labels = table(name)
    (n, k), predicted, scores = logits.shape, logits.argmax(1), softmax(logits)
    result = summarise(total_of(logits, labels), [f"class {i}" for i in range(k)], scores, labels)
    assert result["examples"] == n
    assert result["accuracy"] == sklearn.accuracy_score(labels, predicted)
    assert result["confusion"] == sklearn.confusion_matrix(labels, predicted, labels=range(k)).tolist()
    averages = sklearn.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)[:3]
    assert [result[f"macro_{m}"] for m in ("precision", "recall", "f1")] == pytest.approx(averages, abs=1e-12)
    each = sklearn.precision_recall_fscore_support(labels, predicted, labels=range(k), zero_division=0)
    for i, row in enumerate(result["per_class"]):
        assert row["class"] == f"class {i}"
        assert [row[m] for m in ("precision", "recall", "f1", "support")] == pytest.approx([m[i] for m in each])
    if k > 5 and name not in ("ties", "all equal"):  # scikit-learn breaks ties the other way
        assert result["top5"] == sklearn.top_k_accuracy_score(labels, logits, k=5, labels=range(k))


@every_table
def test_roc_auc_agrees_with_scikit_learn(name):
    logits, labels = table(name)
    scores = softmax(logits)
    k = scores.shape[1]
    if k == 2:
        expected = sklearn.roc_auc_score(labels, scores[:, 1])
    else:
        usable = [i for i in range(k) if 0 < (labels == i).sum() < len(labels)]
        areas = [sklearn.roc_auc_score(labels == i, scores[:, i]) for i in usable]
        expected = np.mean(areas) if areas else None
        if len(usable) == k:
            assert sklearn.roc_auc_score(labels, scores, multi_class="ovr") == pytest.approx(expected)
    assert roc_auc(scores, labels) == (None if expected is None else pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize("name", ["random", "ties", "all equal", "three classes"])
def test_top1_and_top5_by_sorting(name):
    logits, labels = table(name)
    order = np.argsort(-logits, axis=1, kind="stable")
    sums = total_of(logits, labels)
    assert sums["top1"] == (order[:, 0] == labels).sum() == (logits.argmax(1) == labels).sum()
    assert sums["top5"] == (order[:, :5] == labels[:, None]).any(1).sum()


@pytest.mark.parametrize("name", ["random", "ties", "two classes"])
def test_sums_do_not_depend_on_the_division_into_batches(name):
    logits, labels = table(name, n=50)
    losses = np.random.default_rng(1).exponential(size=50).astype(np.float32)
    whole = total_of(logits, labels, losses, batch=50, padding=0)
    assert whole["loss"] == pytest.approx(losses.sum(dtype=np.float64), rel=1e-6)
    assert whole["weight"] == 50
    for batch, padding in ((1, 19), (7, 13), (16, 4), (49, 1)):
        total = total_of(logits, labels, losses, batch, padding)
        assert total["loss"] == pytest.approx(whole["loss"], rel=1e-6)
        for key in set(whole) - {"loss"}:
            assert np.array_equal(total[key], whole[key]), key


def test_sums_add_up_over_devices():
    logits, labels = table("ties", n=16)
    one = np.ones(16, np.float32)
    parts = jax.jit(jax.vmap(batch_sums))(
        logits.reshape(4, 4, 7), labels.reshape(4, 4), one.reshape(4, 4), one.reshape(4, 4)
    )
    whole = sums_of(logits, labels, one, one)
    for key, value in whole.items():
        assert np.array_equal(parts[key].sum(0), value) and parts[key].dtype == value.dtype


def test_weights_scale_the_loss_and_nothing_else():
    logits, labels = table("random", n=4)
    sums = sums_of(logits, labels, jnp.array([2.0, 1.0, 0.5, 0.0]), jnp.array([1.0, 10.0, 100.0, 1000.0]))
    assert (float(sums["loss"]), float(sums["weight"])) == (62.0, 3.5)
    assert sums["confusion"].sum() == 3


def test_padding_with_finite_logits_is_not_counted():
    logits, labels = table("random", n=8)
    counted = np.array([1, 1, 0, 1, 0, 1, 1, 0], np.float32)
    sums = sums_of(logits, labels, counted, np.ones(8, np.float32))
    rows = counted > 0
    expected = sklearn.confusion_matrix(labels[rows], logits[rows].argmax(1), labels=range(7))
    assert np.array_equal(sums["confusion"], expected) and not sums["invalid"].any()
    assert sums["top1"] == expected.trace() and sums["weight"] == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_count_as_wrong(bad):
    logits = np.zeros((4, 3), np.float32)
    logits[np.arange(4), [0, 1, 2, 2]] = 1
    labels = np.array([0, 1, 2, 2], np.int32)
    logits[3, 2] = bad
    sums = total_of(logits, labels)
    assert sums["top1"] == sums["top5"] == 3
    assert np.array_equal(sums["confusion"], np.eye(3))
    assert sums["invalid"].tolist() == [0, 0, 1]
    scores = softmax(logits) if np.isnan(bad) else np.full((4, 3), np.nan)
    result = summarise(sums, "abc", scores, labels)
    assert result["accuracy"] == 0.75
    assert [row["support"] for row in result["per_class"]] == [1, 1, 2]
    assert result["per_class"][2]["recall"] == 0.5
    assert result["roc_auc"] is result["ece"] is None
    assert "1 of 4 examples have logits that are not finite" in format_report(result)


def test_totals_are_exact_for_large_counts():
    sums = {"weight": np.float32(2**24), "top1": np.int32(2**31 - 1)}
    total = add(add(None, sums), {"weight": np.float32(1), "top1": np.int32(2)})
    assert (total["weight"], total["top1"]) == (2**24 + 1, 2**31 + 1)
    assert sums["weight"] == 2**24


def test_calibration_error_by_bins():
    rng = np.random.default_rng(0)
    scores = softmax(3 * rng.normal(size=(500, 4)))
    scores[0], scores[1] = [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]
    labels = rng.integers(0, 4, 500)
    confidence, right = scores.max(1), scores.argmax(1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_a_perfect_and_of_a_confidently_wrong_model():
    sure = np.eye(3)[[0, 1, 2, 1]]
    assert calibration_error(sure, np.array([0, 1, 2, 1])) == 0
    assert calibration_error(sure, np.array([1, 2, 0, 0])) == 1


def test_results_are_deterministic_and_serialise_to_json():
    logits, labels = table("random")
    results = [summarise(total_of(logits, labels), list("abcdefg"), softmax(logits), labels) for _ in range(2)]
    assert results[0] == results[1]
    plain = results[0].to_json()
    assert plain == json.loads(json.dumps(plain, allow_nan=False))
    assert {type(v) for v in plain.values()} == {int, float, list}


def test_metrics_of_scores_are_skipped_above_the_limit(monkeypatch):
    logits, labels = table("random")
    monkeypatch.setattr(metrics, "SCORE_LIMIT", 419)
    result = summarise(total_of(logits, labels), list("abcdefg"))
    assert result["roc_auc"] is result["ece"] is None
    assert result["notes"] == [
        "ROC-AUC and calibration error are not computed: 60 x 7 scores exceed the limit of 419 entries"
    ]


def test_sizes_that_do_not_match_are_rejected():
    logits, labels = table("random")
    sums = total_of(logits, labels)
    with pytest.raises(ValueError, match="6 class names for 7 classes"):
        summarise(sums, list("abcdef"))
    with pytest.raises(ValueError, match=r"scores \(59, 7\) and labels \(60,\) do not match 60 examples of 7 classes"):
        summarise(sums, list("abcdefg"), softmax(logits)[1:], labels)
    with pytest.raises(ValueError, match="no examples"):
        summarise(add(None, {key: 0 * value for key, value in sums.items()}), list("abcdefg"))


def test_report_of_few_classes_shows_all():
    logits, labels = table("three classes")
    result = summarise(total_of(logits, labels), ["cat", "a" * 50, "dog"], softmax(logits), labels)
    lines = format_report(result).splitlines()
    low, high = (100 * end for end in result["accuracy_interval"])
    interval = f"(95 % CI {low:.1f} to {high:.1f} %, n = 60)"
    assert f"accuracy (top-1)   {100 * result['accuracy']:>8.2f} % {interval}" in lines
    assert not any(line.startswith("top-5") for line in lines)
    assert sum(line.startswith(("cat ", "aaaa", "dog ")) for line in lines) == 3
    assert max(map(len, lines)) <= 80


def test_top5_is_shown_from_six_classes_on():
    for classes in (2, 5, 6):
        logits = np.eye(classes, dtype=np.float32)
        lines = format_report(summarise(total_of(logits, np.arange(classes)), [f"name{i}" for i in range(classes)]))
        assert ("top-5" in lines) == (classes > 5)


def test_report_of_many_classes_shows_those_with_the_lowest_f1():
    confusion = np.diag(np.full(40, 10))
    confusion[7] = 0
    confusion[7, 8] = 10
    confusion[9, 9] = 0  # does not occur, so it is not among the worst
    sums = {"loss": 1.0, "weight": 390.0, "top1": 380, "top5": 390, "confusion": confusion, "invalid": np.zeros(40)}
    result = summarise(sums, [f"n{i:02}" for i in range(40)])
    lines = format_report(result).splitlines()
    assert "the 10 of 40 classes with the lowest F1" in lines
    shown = [line[:3] for line in lines if line[:1] == "n" and line[1:3].isdigit()]
    assert len(shown) == 10 and shown[:2] == ["n07", "n08"] and "n09" not in shown


def test_bins_of_the_calibration_error_include_their_upper_edge():
    """0.6 = 9/15 is in the bin (8/15, 9/15], together with 0.55; the gaps of a bin cancel."""
    scores = np.array([[0.6, 0.4], [0.55, 0.45]])
    assert calibration_error(scores, np.array([0, 1])) == pytest.approx(abs(0.4 - 0.55) / 2)


def test_no_reason_is_given_up_to_the_limit_of_scores(monkeypatch):
    logits, labels = table("random")
    monkeypatch.setattr(metrics, "SCORE_LIMIT", logits.size)
    assert summarise(total_of(logits, labels), "abcdefg").notes == ()


def test_thirty_classes_are_all_listed():
    for classes, listed in ((30, 30), (31, 10)):
        logits = np.eye(classes, dtype=np.float32)
        result = summarise(total_of(logits, np.arange(classes, dtype=np.int32)), [f"name{i}" for i in range(classes)])
        assert format_report(result).count("\nname") == listed


@pytest.mark.parametrize("classes", [1, 7, DENSE_CLASSES, DENSE_CLASSES + 1])
def test_the_json_of_a_confusion_matrix_is_read_back_and_small_for_many_classes(classes):
    confusion = np.diag(np.arange(classes) + 1)
    confusion[0, -1] = 10**6
    confusion[classes // 2] = 0  # occurs as prediction at most
    sums = {"loss": 1.0, "weight": 1.0, "top1": 0, "top5": 0, "confusion": confusion, "invalid": np.ones(classes)}
    result = summarise(sums, [str(i) for i in range(classes)])
    rows = result.to_json()["confusion"]
    assert result["confusion"] is result.confusion
    text = json.dumps(rows, indent=1)
    np.testing.assert_array_equal(confusion_from_json(json.loads(text)), confusion)
    assert rows == confusion.tolist() if classes <= DENSE_CLASSES else len(text) < 40 * classes
