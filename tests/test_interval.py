# SPDX-License-Identifier: Apache-2.0
"""How often to save, against published figures and against the expected loss itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.interval import PRIOR_MTTF_S, aupy, daly, mttf, young


def test_the_published_example() -> None:
    """Aupy et al., table 2: C = R = 600 s, D = 60 s, a mean time to failure of 60150 s."""
    assert young(60150, 600) == pytest.approx(9096, abs=1)
    assert daly(60150, 600, 660) == pytest.approx(9142, abs=1)
    assert aupy(60150, 600, 660) == pytest.approx(8449, abs=1)


def loss(period_s: float, mttf_s: float, cost_s: float, recovery_s: float) -> float:
    """Share of the time that is lost to exponential failures: 1 - (T - C) / (mu e^(R/mu) (e^(T/mu) - 1))."""
    return 1 - (period_s - cost_s) / (mttf_s * math.exp(recovery_s / mttf_s) * math.expm1(period_s / mttf_s))


@given(mttf_s=st.floats(600, 1e6), share=st.floats(1e-6, 0.05))
def test_the_period_loses_little_more_than_any_other(mttf_s: float, share: float) -> None:
    """Within a twentieth of the least loss that a search finds."""
    cost_s = share * mttf_s
    ours = loss(aupy(mttf_s, cost_s, 0.0), mttf_s, cost_s, 0.0)
    periods = (cost_s * (1 + 0.05 * 1.02**n) for n in range(900))
    assert ours <= 1.05 * min(loss(period, mttf_s, cost_s, 0.0) for period in periods if period < 50 * mttf_s)


def test_a_run_that_recovers_longer_than_it_runs_saves_all_the_time() -> None:
    """There is no root of a negative number in it."""
    assert aupy(60.0, 5.0, 100.0) == 5.0


def test_the_failure_rate_is_the_priors_at_first_and_the_runs_own_in_the_end() -> None:
    """One failure in a hundred days, and a hundred failures in one."""
    assert mttf(0, 0.0) == PRIOR_MTTF_S
    day_s = 86400.0
    assert mttf(1, 100 * day_s) == pytest.approx(50 * day_s, rel=0.01)
    assert mttf(100, day_s) == pytest.approx(day_s / 100, rel=0.15)
