"""A run on many machines: the same plan, its output in regions that workers make, one driver that commits."""
