"""Preprocessing, augmentation and mixing of batches on the device, in JAX alone."""
