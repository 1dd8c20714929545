"""The hub's client as we use it: the user's endpoint, and nothing told about this machine.

The client adds versions of installed packages and what kind of program runs it to every request, and fetches a list
of such programs first. That is telemetry, so it is switched off before the first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.core import settings

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def tell_nothing() -> None:
    """Switch the client's telemetry off for this process; called before anything is asked of the hub."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def api() -> HfApi:
    """The client's interface at the user's endpoint."""
    from huggingface_hub import HfApi

    tell_nothing()
    return HfApi(endpoint=settings.get("HF_ENDPOINT"))
