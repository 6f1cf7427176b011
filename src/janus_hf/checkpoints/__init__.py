"""Functions for whole checkpoints: convert, merge and inspect them, verify them, and write their model cards."""
