"""Stages that take all inputs of a tensor to one tensor."""
