"""Whether a run, or a study, fits on devices that are not here, and what it takes at least."""
