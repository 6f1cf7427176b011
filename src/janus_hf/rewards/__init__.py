"""Models and rules that score generated images: rewards, object detectors and judges that answer questions."""
