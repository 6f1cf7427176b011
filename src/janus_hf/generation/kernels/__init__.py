"""Kernels of generation steps.

`x86/` and `few_rows/` hold the package's own, for x86 CPUs and for quantised weights on CUDA. `attention_kernels.py`
chooses among the attention kernels of PyTorch.
"""
