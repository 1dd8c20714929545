"""Stages that take one task vector to one task vector: trimming, dropping, masking."""
