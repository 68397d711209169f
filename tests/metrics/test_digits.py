"""Judging digits by the shipped classifier."""

import pytest
import torch

from flowlib import data, metrics
from flowlib.metrics import digits


def test_real_digits_are_recognised_and_noise_is_not() -> None:
    test = data.digits.load("test")
    assert digits.accuracy(test.x, test.y) > 0.98
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert digits.accuracy(noise, torch.arange(500) % 10) < 0.3


def test_real_digits_are_closer_to_each_other_than_to_blurred_ones() -> None:
    train, test = data.digits.load("train"), data.digits.load("test")
    blurred = torch.nn.functional.avg_pool2d(train.x[:350], 3, stride=1, padding=1)
    assert digits.frechet(train.x[:350], test.x) < 0.3 * digits.frechet(blurred, test.x)
    precision, recall = digits.precision_recall(train.x[:350], test.x)
    assert min(precision, recall) > 0.7
    assert digits.precision_recall(blurred, test.x)[0] < precision


def test_one_class_alone_is_precise_but_does_not_cover() -> None:
    train, test = data.digits.load("train"), data.digits.load("test")
    precision, recall = digits.precision_recall(train.of_class(0).x, test.x)
    assert precision > 0.8
    assert recall < 0.3


def test_features_are_deterministic_and_any_dtype_is_taken() -> None:
    x = data.digits.load("test").x[:20]
    assert digits.features(x).shape == (20, 32)
    torch.testing.assert_close(digits.features(x), digits.features(x.double()))
    assert metrics.digits is digits


def test_classifier_is_single_precision_whatever_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    digits.classifier.cache_clear()
    try:
        assert digits.features(data.digits.load("test").x[:2]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
        digits.classifier.cache_clear()


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \[n, 1, 8, 8\]"):
        digits.features(torch.zeros(3, 1, 28, 28))
    with pytest.raises(ValueError, match=r"y must have shape \[3\]"):
        digits.accuracy(torch.zeros(3, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="NaN"):
        digits.predict(torch.full((1, 1, 8, 8), torch.nan))
