"""The benchmarks: one file each, with the readers of their data."""
