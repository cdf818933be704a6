"""Doors of `bocb NAME` beside the three that train, sweep and analyze."""
