"""The pieces of `train_shapes.py`: how the small Janus-Pro that ships with the package is trained from nothing."""
