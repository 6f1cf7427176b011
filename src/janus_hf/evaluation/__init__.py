"""Run benchmarks on a pipeline and report their numbers beside the papers'."""
