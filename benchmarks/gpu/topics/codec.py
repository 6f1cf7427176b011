"""Topic "codec": decoding and encoding images, and what memory formats, normalisation and attention cost in it."""

import copy
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...codec import make_pair, median_seconds
from ...peers import make_config
from ..bench import Bench
from ..tables import Column, Labels, Part, Topic


DTYPES = (torch.float32, torch.bfloat16)
IMAGES = (1, 4)
# Changes of one codec -> what they are called in the table. On CUDA this package's codec is contiguous as it is.
VARIANTS = (
    "ours, inputs channels last",
    "ours, weights and inputs channels last",
    "ours, fused attention",
    "in-tree, weights channels last",
)
OPERATORS = ("3x3 convolution", "group norm and SiLU")
SHAPES = ((128, 384), (512, 24))  # channels and side of the grid: the largest and the smallest of the decoder


def compare(bench: Bench, dtype: torch.dtype) -> None:
    """Time both codecs, one and four images at a time."""
    ours, theirs = _pair(bench, dtype)
    for count in IMAGES:
        ids, pixels = _inputs(bench, ours, count, dtype)
        calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "decode": (partial(theirs.decode, ids), partial(ours.decode_image_ids, ids)),
            "encode": (partial(theirs.encode, pixels), partial(ours.encode_image_ids, pixels)),
        }
        for what, pair in calls.items():
            with bench.row(what, _name(dtype), str(count), "ours") as row, torch.no_grad():
                theirs_seconds, ours_seconds = median_seconds(pair, bench.pick(10, 1), bench.device)
                _fill(row, theirs_seconds, ours_seconds, count)


def vary(bench: Bench, dtype: torch.dtype) -> None:
    """Time variants of the codecs that differ in one property, against the in-tree codec as it is."""
    count = max(IMAGES)
    ours, theirs = _pair(bench, dtype)
    ids, pixels = _inputs(bench, ours, count, dtype)
    for variant in VARIANTS:
        changed = copy.deepcopy(theirs if variant.startswith("in-tree") else ours)
        _change(changed, variant)
        for what, reference, inputs in (("decode", theirs.decode, ids), ("encode", theirs.encode, pixels)):
            with bench.row(what, _name(dtype), str(count), variant) as row, torch.no_grad():
                pair = (partial(reference, inputs), partial(_method(changed, what), inputs))
                base, seconds = median_seconds(pair, bench.pick(5, 1), bench.device)
                _fill(row, base, seconds, count)


def operators(bench: Bench, dtype: torch.dtype) -> None:
    """Time single operators of the codec in both memory formats, and both ways to compute its attention."""
    rounds = bench.pick(20, 1)
    for channels, side in SHAPES:
        side = bench.pick(side, 16)
        x = torch.randn(4, channels, side, side, device=bench.device, dtype=dtype)
        last = x.contiguous(memory_format=torch.channels_last)
        layer = nn.Conv2d(channels, channels, 3, padding=1, device=bench.device, dtype=dtype)
        weight, bias = layer.weight.detach(), layer.bias
        norm = nn.GroupNorm(32, channels, device=bench.device, dtype=dtype)
        runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            OPERATORS[0]: (
                partial(F.conv2d, x, weight, bias, padding=1),
                partial(F.conv2d, last, weight.contiguous(memory_format=torch.channels_last), bias, padding=1),
            ),
            OPERATORS[1]: (partial(_norm, norm, x), partial(_norm, norm, last)),
        }
        for what, pair in runs.items():
            with bench.row(*_operator_labels(what, dtype, channels)) as row, torch.no_grad():
                contiguous, channels_last = median_seconds(pair, rounds, bench.device)
                _fill(row, contiguous, channels_last, 4)
    q, k, v = torch.randn(3, 4, 512, bench.pick(576, 64), device=bench.device, dtype=dtype)
    with bench.row(*_attention_labels(dtype)) as row, torch.no_grad():
        spelled, fused = median_seconds((partial(_spelled, q, k, v), partial(_fused, q, k, v)), rounds, bench.device)
        _fill(row, spelled, fused, 4)


def _pair(bench: Bench, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return both codecs with the same random weights: of full size, or tiny in a dry run."""
    return make_pair(dtype, bench.device, make_config(bench.size("1b")).vq_config)


def _inputs(bench: Bench, codec: Any, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random codes `(count, P)` and random pixels `(count, 3, S, S)` for a codec."""
    config = codec.config
    ids = torch.randint(config.num_embeddings, (count, config.num_image_tokens), device=bench.device)
    pixels = torch.rand(count, 3, config.image_size, config.image_size, device=bench.device).to(dtype) * 2 - 1
    return ids, pixels


def _method(codec: Any, what: str) -> Callable[[torch.Tensor], Any]:
    """Return the method of a codec that decodes or encodes; the two codecs name it differently."""
    ours: Callable[[torch.Tensor], Any] | None = getattr(codec, f"{what}_image_ids", None)
    method: Callable[[torch.Tensor], Any] = ours or getattr(codec, what)
    return method


def _change(codec: nn.Module, variant: str) -> None:
    """Change one property of a codec, in place, as the name of the variant says."""
    if "weights" in variant:
        codec.to(memory_format=torch.channels_last)
    if "inputs channels last" in variant:
        for name in ("encoder", "post_quant_conv"):
            codec.get_submodule(name).register_forward_pre_hook(_make_channels_last)
    for module in codec.modules():
        if "fused attention" in variant and type(module).__name__ == "AttentionBlock":
            module.forward = types.MethodType(_fused_block, module)


def _make_channels_last(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the first input of a module in the channels-last memory format; a hook."""
    return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def _fused_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute the codec's attention block with PyTorch's fused attention."""
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))
    return x + block.proj_out(_fused(q, k, v).reshape(x.shape))


def _fused(q_BCP: torch.Tensor, k_BCP: torch.Tensor, v_BCP: torch.Tensor) -> torch.Tensor:
    """Return the attention over `P` cells of `C` channels, `(B, C, P)`, by PyTorch's fused function."""
    q, k, v = (tensor.transpose(1, 2).unsqueeze(1) for tensor in (q_BCP, k_BCP, v_BCP))
    return F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)


def _spelled(q_BCP: torch.Tensor, k_BCP: torch.Tensor, v_BCP: torch.Tensor) -> torch.Tensor:
    """Return the same attention by two matrix products and a softmax, as the original code computes it."""
    weights = torch.bmm(q_BCP.transpose(1, 2), k_BCP) * q_BCP.shape[1] ** -0.5
    return torch.bmm(v_BCP, weights.softmax(dim=-1).transpose(1, 2))


def _norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return group normalisation and SiLU of a grid."""
    return F.silu(norm(x))


def _fill(row: dict[str, Any], base: float, seconds: float, count: int) -> None:
    """Set the values of a row: milliseconds per image of the compared code and of this one, and their ratio."""
    row.update(base=base / count * 1e3, ms=seconds / count * 1e3, ratio=base / seconds)


def _name(dtype: torch.dtype) -> str:
    """Return the label of a dtype."""
    return str(dtype).removeprefix("torch.")


def _operator_labels(what: str, dtype: torch.dtype, channels: int) -> Labels:
    """Return the labels of the row of an operator on the grid with this number of channels."""
    side = dict(SHAPES)[channels]
    return (f"{what}, {channels} x {side} x {side}", _name(dtype), "4", "channels last against contiguous")


def _attention_labels(dtype: torch.dtype) -> Labels:
    """Return the labels of the row that compares two ways to compute attention."""
    return ("attention, 576 cells", _name(dtype), "4", "fused against spelled out")


def _parts(dtype: torch.dtype) -> tuple[Part, ...]:
    """Return the parts that measure in one dtype."""
    name = _name(dtype)
    whole = tuple((what, name, str(count), "ours") for count in IMAGES for what in ("decode", "encode"))
    variants = tuple((what, name, str(max(IMAGES)), one) for one in VARIANTS for what in ("decode", "encode"))
    single = [_operator_labels(what, dtype, channels) for channels, _ in SHAPES for what in OPERATORS]
    return (
        Part(f"{name} whole", 6, whole, lambda bench: compare(bench, dtype)),
        Part(f"{name} variants", 7, variants, lambda bench: vary(bench, dtype)),
        Part(f"{name} operators", 3, (*single, _attention_labels(dtype)), lambda bench: operators(bench, dtype)),
    )


_PARTS = [_parts(dtype) for dtype in DTYPES]

TOPIC = Topic(
    title="Image codec",
    explanation="384 x 384 images. The compared codec is transformers' own, as it is; rows of single operators "
    "compare the two ways that they name. All times are medians, and the two that are compared take turns.",
    labels=("what", "dtype", "images", "variant"),
    columns=(
        Column("ms", "ms per image", ".3f"),
        Column("base", "compared with, ms", ".3f"),
        Column("ratio", "compared / this", ".2f"),
    ),
    parts=tuple(part for kind in zip(*_PARTS, strict=True) for part in kind),
)
