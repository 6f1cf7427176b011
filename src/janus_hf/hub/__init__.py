"""Uploads to the Hub that the pipeline, the model and the processor share, and the model cards that go with them."""
