"""Models and rules that score images: rewards for training, detectors and judges for evaluation."""
