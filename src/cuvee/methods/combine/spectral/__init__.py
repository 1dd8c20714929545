"""Stages that work on whole matrices through their singular values or gradients."""
