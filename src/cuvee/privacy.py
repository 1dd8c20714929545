"""Privacy and protection: secrets of locks, the cost of releasing private models, the draw of the one released.

The public names of `cuvee.methods.privacy`; owns nothing itself.
"""

from __future__ import annotations

from cuvee.methods.privacy.accounting import (
    Guarantee,
    linear_rdp,
    rdp_guarantee,
    selection_delta,
    selection_probabilities,
    selection_rdp,
)
from cuvee.methods.privacy.gaussian import (
    gaussian_delta,
    gaussian_linear,
    gaussian_rdp,
    least_sigma,
    two_weights,
)
from cuvee.methods.privacy.secret import fingerprint, new_secret
from cuvee.methods.privacy.selection import select

__all__ = [
    "Guarantee",
    "fingerprint",
    "gaussian_delta",
    "gaussian_linear",
    "gaussian_rdp",
    "least_sigma",
    "linear_rdp",
    "new_secret",
    "rdp_guarantee",
    "select",
    "selection_delta",
    "selection_probabilities",
    "selection_rdp",
    "two_weights",
]
