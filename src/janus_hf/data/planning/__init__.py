"""Which rows are trained on, in which order, and which of them share a row of the batch."""
