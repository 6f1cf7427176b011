"""Kernels for drawing on x86 CPUs: this folder can be deleted as a whole."""
