"""Augmentation and mixing of batches on the device."""
