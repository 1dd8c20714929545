"""Compiled arithmetic for the hot methods: one small C file, found prebuilt or built on demand, never required."""

from cuvee.engine.kernels.library import Kernels, Op, State, kernels, state

__all__ = ["Kernels", "Op", "State", "kernels", "state"]
