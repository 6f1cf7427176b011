"""Modules of the individual benchmarks. They read a benchmark's data, run it on a pipeline and compute its metrics."""
