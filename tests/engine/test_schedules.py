from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_hf.engine.schedules import Cosine, EpochRamp


def test_equals_official_schedules(golden):
    """Arrays of the official cosine scheduler: 10 epochs of 7 iterations."""
    arrays = golden("base_methods")
    steps = range(70)
    lr, wd, momentum = arrays["sched/lr"], arrays["sched/wd"], arrays["sched/mom"]
    peak, warmup = lr.max(), int(lr.argmax()) + 1
    # the lowest value is read from the cosine itself: value at one half of it is the mean of both ends
    low = 2 * lr[warmup + (70 - warmup) // 2] - peak if (70 - warmup) % 2 == 0 else 1e-6
    np.testing.assert_allclose([Cosine(peak, low, 70, warmup)(s) for s in steps], lr, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose([Cosine(0.04, 0.4, 70)(s) for s in steps], wd, rtol=1e-6)
    np.testing.assert_allclose([Cosine(0.996, 1.0, 70)(s) for s in steps], momentum, rtol=1e-6)
    ramp = arrays["ibot/temp_schedule"]
    rising = int(np.argmax(ramp == ramp[-1])) + 1
    ours = EpochRamp(ramp[0], ramp[-1], rising, steps_per_epoch=7)
    np.testing.assert_allclose([ours(7 * epoch) for epoch in range(len(ramp))], ramp, rtol=1e-6)


@given(st.integers(2, 300), st.floats(0, 1), st.floats(0.001, 5), st.floats(0, 5))
def test_cosine_hits_its_ends_and_stays_between(steps, fraction, start, end):
    warmup = int(fraction * steps / 2)
    schedule = Cosine(start, end, steps, warmup)
    values = [schedule(step) for step in range(steps)]
    if warmup > 1:
        assert values[0] == 0 and values[warmup - 1] == pytest.approx(start)
    assert values[warmup] == pytest.approx(start)
    assert schedule(steps) == pytest.approx(end)
    low, high = sorted([start, end])
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values[warmup:])
    assert all(a <= b + 1e-12 for a, b in pairwise(values[:warmup]))


def test_ramp_is_constant_within_an_epoch_and_after_its_end():
    ramp = EpochRamp(0.04, 0.07, epochs=4, steps_per_epoch=5)
    assert [ramp(step) for step in range(5)] == [0.04] * 5
    assert ramp(5) == pytest.approx(0.05) and ramp(15) == ramp(500) == pytest.approx(0.07)
    assert EpochRamp(0.04, 0.07, epochs=0, steps_per_epoch=5)(0) == 0.07


def test_equals_the_official_siamese_schedules(golden):
    """Learning rate 1e-3 with 40 of 1600 epochs of warm-up, and momentum .995 to 1, at fractions of an epoch."""
    data, per_epoch = golden("siameseim"), 1000
    rate = Cosine(1e-3, 0.0, 1600 * per_epoch, 40 * per_epoch, warmup_rule="mae")
    momentum = Cosine(0.995, 1.0, 1600 * per_epoch)
    for epoch, expected_rate, expected_momentum in zip(data["sched/epoch"], data["sched/lr"], data["sched/mm"], strict=True):
        step = round(epoch * per_epoch)
        if step != pytest.approx(epoch * per_epoch, abs=1e-6):
            continue
        assert rate(step) == pytest.approx(expected_rate, rel=1e-6, abs=1e-15)
        assert momentum(step) == pytest.approx(expected_momentum, rel=1e-9)
    assert rate(40 * per_epoch - 1) < 1e-3 == rate(40 * per_epoch), "the peak comes after the warm-up"


def test_equals_schedules_by_hand():
    """Ten steps: DINO's warm-up of 4 ends at its peak, MAE's one step before it; half way through, the mean of both ends."""
    np.testing.assert_allclose([Cosine(3.0, 1.0, 10, 4)(s) for s in (0, 1, 2, 3, 4, 7)], [0, 1, 2, 3, 3, 2], atol=1e-12)
    mae = Cosine(4.0, 0.0, 10, 4, warmup_rule="mae")
    np.testing.assert_allclose([mae(s) for s in (0, 1, 3, 4, 6, 7)], [0, 1, 3, 4, 3, 2], atol=1e-12)
    expected = 1 - (1 - 0.995) * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose([Cosine(0.995, 1.0, 8)(s) for s in range(8)], expected, rtol=1e-12)
