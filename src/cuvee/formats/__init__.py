"""Bytes ↔ tensors, one file per format. Readers trust nothing; header work needs no torch or NumPy."""
