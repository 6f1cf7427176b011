"""Generation of text: transformers' `generate` with images, its arguments, and fast steps for its tokens."""
