"""Spectra of trained weights, layer by layer."""
