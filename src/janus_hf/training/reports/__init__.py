"""What a run says about its cost: floating-point operations, tokens per second, and memory."""
