"""Methods that work on whole matrices, as data."""
