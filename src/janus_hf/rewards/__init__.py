"""Models and rules that score an image: rewards for training, judges for evaluation."""
