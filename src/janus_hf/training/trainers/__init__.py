"""The trainers, each beside its configuration class."""
