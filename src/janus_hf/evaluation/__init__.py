"""Run benchmarks on a Janus pipeline, and report the scores beside those that the Janus papers published."""
