"""The context manager `repeatable_attention`, inside which attention uses kernels that repeat their results.

PyTorch chooses a kernel of `scaled_dot_product_attention` at every call. According to PyTorch, cuDNN's kernel may give
different results for equal inputs: it is refused under `torch.use_deterministic_algorithms`. On Hopper GPUs PyTorch
nevertheless prefers this kernel. Image tokens are sampled one after another, so a difference in the last bit of one
step can change a token, and with it the rest of the image.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


_lock = threading.Lock()
_users = 0  # number of `with` blocks, of all threads, that are inside the context now
_was_enabled = False  # whether cuDNN's attention was enabled before the first of them was entered


@contextmanager
def repeatable_attention() -> Iterator[None]:
    """Keep PyTorch from choosing cuDNN's attention kernel inside the context.

    PyTorch's switch belongs to the process, so threads that are inside the context at the same time share it: the
    first to enter turns cuDNN's kernel off, and the last to leave restores the switch. If the caller has disabled all
    other kernels, cuDNN's kernel stays enabled.
    """
    global _users, _was_enabled
    switches = torch.backends.cuda
    with _lock:
        if _users == 0:
            others = switches.flash_sdp_enabled(), switches.mem_efficient_sdp_enabled(), switches.math_sdp_enabled()
            _was_enabled = switches.cudnn_sdp_enabled()
            switches.enable_cudnn_sdp(_was_enabled and not any(others))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                switches.enable_cudnn_sdp(_was_enabled)


__all__ = ["repeatable_attention"]
