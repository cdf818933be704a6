"""Dense detection of boxes around any net: anchors, targets, losses, predictions; JAX only.

A box is (x1, y1, x2, y2) in pixels. Boxes of an image are padded to a fixed number, so that every
function has static shapes and runs inside jit.
"""
