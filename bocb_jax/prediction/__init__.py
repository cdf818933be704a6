"""From a run folder and image files to classes, boxes or joints.

A run folder may come from anybody: what it says is checked, and nothing that it names is imported.
"""
