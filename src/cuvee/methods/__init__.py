"""Merge methods: pure mathematics. `contract.py` says what one is, `registry.py` finds them by name."""
