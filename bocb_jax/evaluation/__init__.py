"""Scores of detections and poses, as COCO defines them."""
