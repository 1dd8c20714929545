"""Runs a plan: reads blocks, applies stages, hands bytes to a sink."""
