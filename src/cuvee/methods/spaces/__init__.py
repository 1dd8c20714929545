"""Spaces: coordinates that several task vectors of one matrix are merged in. One file each."""
