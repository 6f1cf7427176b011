"""Trainers for supervised fine-tuning of Janus-Pro and for its image codec, with the classes of their settings."""
