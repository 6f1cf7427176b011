"""Operations on whole checkpoints: convert, merge, inspect, describe in a model card."""
