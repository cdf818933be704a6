"""Files on disk, locks, and folders at URLs; no JAX."""
