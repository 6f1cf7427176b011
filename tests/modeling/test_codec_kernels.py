"""The kernels that the image codec starts on a GPU, against transformers' own codec: counted without a GPU."""

from collections import Counter

import pytest
import torch
from benchmarks.codec import make_pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from janus_hf.modeling import image_codec
from janus_hf.modeling.codec_blocks import channels_last, in_fastest_format


# Kinds of operators that start a kernel -> words in their names. The first kind with a word in the name counts.
KINDS = {
    "convolution": ("convolution",),
    "normalisation": ("group_norm",),
    "matrix product": ("bmm", "mm"),
    "softmax": ("softmax",),
    "conversion": ("clone", "copy"),
    "resizing": ("upsample", "pad"),
    "lookup": ("embedding",),
    "reduction": ("vector_norm", "sum", "mean", "arg", "min", "max"),
    "elementwise": ("silu", "sigmoid", "add", "sub", "mul", "div", "pow", "clamp", "arange"),
}
NO_KERNELS = ("empty", "_unsafe_view", "detach", "_local_scalar_dense")
# Operators of the checks of ids and results, which transformers' codec does not have.
CHECKS = {"decode": ("min", "max", "sum"), "encode": ("sum",)}


class KernelsOnAGpu(TorchDispatchMode):
    """Context manager that counts the kernels that the operators inside it would start on CUDA, and their bytes.

    It runs on tensors of the device "meta", for which PyTorch takes the paths of devices that are not a CPU. Those of
    cuDNN are added (`cudnn_conv_suggest_memory_format` in PyTorch's source): a convolution is computed in the
    channels-last format if its input or its weight has it, and the other one is converted in every call.

    Attributes:
        kernels, bytes: Number of kernels, and bytes that they read and write, by kind.
        names: Number of operators that start a kernel, by name.
        mixed: Names of operators that read images in both formats.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes, self.names, self.mixed = Counter(), Counter(), Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name == "_local_scalar_dense":
            return 0
        output = function(*args, **(kwargs or {}))
        returned = function._schema.returns
        is_view = all(one.alias_info is not None and not one.alias_info.is_write for one in returned)
        if is_view or any(word in name for word in NO_KERNELS):
            return output
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        images = [leaf for leaf in inputs if leaf.ndim == 4]
        if name == "convolution":
            if any(map(in_channels_last, images)):
                output = channels_last(output)
                for image in images:
                    if not in_channels_last(image):
                        self.count("conversion", [image, image])
        elif len({in_channels_last(image) for image in images}) > 1:
            self.mixed.append(name)
        self.names[name] += 1
        self.count(kind_of(name), [*inputs, *(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))])
        return output

    def count(self, kind, tensors):
        self.kernels[kind] += 1
        self.bytes[kind] += sum(tensor.nbytes for tensor in tensors)


def in_channels_last(image):
    return image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()


def kind_of(name):
    return next(kind for kind, words in KINDS.items() if any(word in name for word in words))


@torch.no_grad()
def count(what, dtype=torch.float32, images=4):
    """Count what this package's codec does and what transformers' does, for images of 384 pixels."""
    with torch.device("meta"):
        ours, theirs = make_pair(dtype, "meta")
        ids, pixels = torch.zeros(images, 576, dtype=torch.long), torch.zeros(images, 3, 384, 384, dtype=dtype)
    # A codec on "meta" is an offloaded one, whose inputs stay where they are.
    calls = {
        "decode": (lambda: theirs.decode(ids), lambda: ours.decode_image_ids(ids)),
        "encode": (lambda: theirs.encode(pixels), lambda: ours.encode_image_ids(pixels)),
    }
    counts = []
    for call in calls[what]:
        with KernelsOnAGpu() as counted:
            call()
        counts.append(counted)
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", ["decode", "encode"])
def test_no_more_kernels_than_in_tree(what, dtype):
    theirs, ours = count(what, dtype)
    checks = Counter(kind_of(name) for name in CHECKS[what])
    for kind in KINDS:
        assert ours.kernels[kind] - checks[kind] <= theirs.kernels[kind], kind
    assert ours.kernels.total() < 0.9 * theirs.kernels.total()
    assert ours.bytes.total() < 0.9 * theirs.bytes.total()  # the checks included
    assert ours.mixed == theirs.mixed == []


@pytest.mark.parametrize("what", ["decode", "encode"])
def test_channels_last_would_convert_in_every_block(what, monkeypatch):
    """The reason for the format, and a proof that the count sees it."""
    _, ours = count(what)
    monkeypatch.setattr(image_codec, "in_fastest_format", channels_last)
    theirs, slower = count(what)
    assert slower.kernels["conversion"] > 5 * theirs.kernels["conversion"] >= ours.kernels["conversion"]
    assert slower.bytes.total() > 1.1 * ours.bytes.total()
    assert slower.mixed


def test_the_format_depends_on_the_device():
    x = torch.zeros(2, 4, 8, 8)
    assert in_channels_last(in_fastest_format(x))
    other = torch.zeros(2, 4, 8, 8, device="meta")
    assert in_fastest_format(other) is other
    assert in_fastest_format(channels_last(other)).is_contiguous()
