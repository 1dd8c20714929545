"""Stages that take the combined tensor to one tensor."""
