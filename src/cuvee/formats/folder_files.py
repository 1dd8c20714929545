"""Names of files that tell what a folder holds besides plain tensors. Knows nothing of what is in them."""

from __future__ import annotations

PACKAGE = "package.json"  # a base and what tasks change (`package_form`)
PACKED = "cuvee_packed.json"  # an expert as changes of a base (`packed`)
