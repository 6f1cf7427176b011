"""Resuming and stopping: what may change when a run is resumed, how changes are applied, and how a run is stopped."""
