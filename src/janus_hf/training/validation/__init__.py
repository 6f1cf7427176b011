"""Measuring a model while it is trained: losses on data that it is not trained on, benchmarks, the best checkpoint."""
