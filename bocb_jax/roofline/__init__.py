"""What a compiled training step costs on devices that are not here: memory, traffic, time."""
