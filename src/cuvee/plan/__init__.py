"""Recipe + headers → plan: what will be read, computed and written, before a weight is read."""
