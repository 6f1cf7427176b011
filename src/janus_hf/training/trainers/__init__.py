"""The trainers and the classes of their settings."""
