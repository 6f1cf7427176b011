"""What a run says about its cost: documents and visits, floating-point operations, tokens per second, and memory."""
