"""One file per benchmark, with the readers of their data."""
