"""Files, locks and folders at URLs; no JAX."""
