"""Calibrated similarities: the definition, its two ends, bad input."""

import numpy as np
import pytest

from fastprobe.errors import InputError
from fastprobe.statistics.calibration import calibrated


def test_it_is_its_definition_with_0_at_the_quantile_and_1_at_the_top():
    null = np.linspace(0, 0.4, 101)
    t = np.stack([np.r_[value, null] for value in (0.38, 1.0, 0.69, 0.0)])
    np.testing.assert_allclose(calibrated(t, 1.0), [0, 1, 0.5, -0.38 / 0.62], atol=1e-12)
    assert calibrated(t, np.array([1, 2, 1, 1]))[1] == pytest.approx(0.62 / 1.62)


def test_under_the_null_it_is_above_0_about_as_often_as_alpha():
    t = np.random.default_rng(0).normal(size=(2000, 200))
    assert np.mean(calibrated(t, 10.0, 0.1) > 0) == pytest.approx(0.1, abs=0.025)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="`alpha`"):
        calibrated(np.zeros((1, 3)), 1.0, alpha=0)
    with pytest.raises(InputError, match="`largest` must be above"):
        calibrated(np.ones((1, 3)), 1.0)
