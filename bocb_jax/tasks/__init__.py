"""What a run is for: classification, detection of boxes, estimation of poses.

The rest of the package trains, records and compares runs without knowing which; `kinds.KINDS` has
the few things that differ.
"""
