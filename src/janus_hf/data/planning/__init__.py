"""Modules that decide which rows of the data are trained on, in which order, and which share a row of the batch."""
