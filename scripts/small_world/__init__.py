"""Modules of the script `train_shapes.py`, which trains the small Janus-Pro that ships with the package."""
