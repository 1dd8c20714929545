"""Shares of weights: the kernels' floats are the stage's, bit for bit, and need no torch however many there are."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.engine.fused.coefficients import shares
from cuvee.errors import RunError
from cuvee.methods.coefficients import normalized

WEIGHTS = st.lists(st.floats(-10, 10).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=40)


@given(WEIGHTS)
def test_the_shares_are_those_of_the_stage(weights: list[float]) -> None:
    if abs(sum(weights)) <= 1e-12 * sum(map(abs, weights)):
        for function in (shares, normalized):
            with pytest.raises(RunError):
                function(weights)
        return
    found = shares(weights)
    assert found == normalized(weights).tolist()
    exact = math.fsum(weights)
    slack = 64 * 2**-53 * sum(map(abs, weights))  # of the sum, in any order
    if abs(exact) > 4 * slack:
        assert all(
            math.isclose(a, w / exact, rel_tol=4 * slack / abs(exact) + 1e-15)
            for a, w in zip(found, weights, strict=True)
        )


def test_many_weights_do_not_import_torch() -> None:
    code = (
        "import sys; from cuvee.engine.fused.coefficients import shares; "
        "shares([0.1 * i + 0.037 for i in range(16)]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
