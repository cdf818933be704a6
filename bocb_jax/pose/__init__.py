"""Top-down pose estimation with heat maps: codec, crops, object keypoint similarity, loss."""
