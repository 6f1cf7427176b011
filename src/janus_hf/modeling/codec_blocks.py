"""The two convolutional networks of the image codec, encoder and decoder, and the blocks that they are made of.

Two properties are unusual for a VQGAN: attention is used at the lowest resolution only, and strided convolutions pad
only the right and the bottom. Attribute names are those of transformers' Janus.

`B` batch, `C` channels, `H W` height and width of the grid, `P = H * W` cells of the grid.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import JanusProVQConfig


# Function that doubles a grid `(B, C, H, W)` by repeating every cell and applies a 3x3 convolution. Its arguments are
# the grid, and the weight and bias of the convolution.
Doubling = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the group normalisation that every normalised layer of the image codec uses: 32 groups, eps 1e-6."""
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return `x` `(B, C, H, W)` in torch's channels-last memory format."""
    return x.contiguous(memory_format=torch.channels_last)


def in_fastest_format(x: torch.Tensor) -> torch.Tensor:
    """Return `x` `(B, C, H, W)` in the memory format in which the codec is fastest on the device of `x`.

    On a CPU this is the channels-last format, in which the convolution kernels work. All layers keep it, so one
    conversion serves them all. On other devices it is the contiguous format, which is also that of transformers'
    codec: PyTorch's group normalisation knows channels last on CPUs only. Elsewhere it would convert its input to the
    contiguous format in every block, and the residual additions would read two formats.
    """
    return channels_last(x) if x.device.type == "cpu" else x.contiguous()


def double_then_convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Double the height and width of `x` by repeating every cell, then apply a 3x3 convolution.

    Args:
        x: `(B, C, H, W)`.
        weight: `(C', C, 3, 3)`.
        bias: `(C',)`.

    Returns:
        `(B, C', 2 H, 2 W)`.
    """
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def convolve_quarters(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute the result of `double_then_convolve` with 4/9 of the multiplications, summed in another order.

    A 3x3 kernel covers three rows of the doubled grid, of which two are copies of the same row of `x`. The same holds
    for columns. Each output pixel is therefore a 2x2 convolution of `x` whose weights are sums of the 3x3 kernel's
    weights. Which weights are summed depends on whether the output pixel's row and column are even or odd, so the
    output is computed in four quarters, one for each of these cases.

    Args:
        x: `(B, C, H, W)`.
        weight: `(C', C, 3, 3)`.
        bias: `(C',)`.

    Returns:
        `(B, C', 2 H, 2 W)`.
    """
    height, width = x.shape[-2:]
    doubled = channels_last(x.new_empty(len(x), len(weight), 2 * height, 2 * width))
    for row in (0, 1):
        for column in (0, 1):
            kernel = _merge_taps(_merge_taps(weight, 2, row), 3, column)
            quarter = F.conv2d(x, kernel, bias, padding=1)
            doubled[:, :, row::2, column::2] = quarter[:, :, row : row + height, column : column + width]
    return doubled


def _merge_taps(weight: torch.Tensor, dim: int, parity: int) -> torch.Tensor:
    """Sum those two of three adjacent kernel weights that multiply the same pixel once the image has been doubled.

    Args:
        weight: Kernel `(C', C, height, width)`.
        dim: Axis of `weight` that is reduced from length 3 to length 2.
        parity: 0 for output pixels with an even index along this axis, whose last two weights are summed; 1 for those
            with an odd index, whose first two weights are summed.
    """
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last] if parity == 0 else [first + middle, last], dim)


def fastest_doubling(x: torch.Tensor) -> Doubling:
    """Return the faster function that doubles a grid and convolves it, for the device and dtype of `x`.

    For float32 on a CPU this is `convolve_quarters`, because there the number of multiplications determines the time
    of a convolution. Otherwise it is `double_then_convolve`. While gradients are recorded it is always
    `double_then_convolve`, which has the order of operations of deepseek-ai/Janus.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
        return convolve_quarters
    return double_then_convolve


class ResidualBlock(GradientCheckpointingLayer):
    """Two 3x3 convolutions, each after group normalisation and SiLU, whose result is added to the block's input.

    It maps `(B, in_channels, H, W)` to `(B, out_channels, H, W)`. If these numbers of channels differ, a 1x1
    convolution adapts the input before the addition.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.has_shortcut = in_channels != out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.has_shortcut else x) + h


class AttentionBlock(GradientCheckpointingLayer):
    """Single-head self-attention over the cells of a grid `(B, C, H, W)`, added to the input. The shape stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q_BCP, k_BCP, v_BCP = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        # The operations have the order of deepseek-ai/Janus and use no fused kernel: pixels are truncated to 8 bits,
        # so that a difference in the last bit of a float can change a pixel. On 24x24 cells this costs nothing.
        weights_BPP = torch.bmm(q_BCP.transpose(1, 2), k_BCP) * q_BCP.shape[1] ** -0.5
        h = torch.bmm(v_BCP, weights_BPP.softmax(dim=-1).transpose(1, 2)).view_as(x)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Strided 3x3 convolution, padded at the right and the bottom only: `(B, C, H, W)` -> `(B, C, H/2, W/2)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DoublingConv2d(nn.Conv2d):
    """3x3 convolution that first doubles the height and width of its input: `(B, C, H, W)` -> `(B, C', 2 H, 2 W)`.

    The caller of `forward` passes the function that computes the result (`double_then_convolve` or
    `convolve_quarters`), so that the layer has no branch on the device. The function runs inside `forward`, because
    hooks that offload weights load them only while `forward` runs.
    """

    def forward(self, x: torch.Tensor, doubling: Doubling = double_then_convolve) -> torch.Tensor:
        return doubling(x, self.weight, self.bias)


class Upsample(nn.Module):
    """Layer that doubles a grid and convolves it: `(B, C, H, W)` -> `(B, C, 2 H, 2 W)`.

    It only wraps a `DoublingConv2d`, so that the names of the weights are those in checkpoint files.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, doubling: Doubling) -> torch.Tensor:
        return self.conv(x, doubling)


class Level(nn.Module):
    """The residual blocks of the codec's encoder or decoder at one resolution.

    An attention block follows each residual block if `attention` is true, which is the case at the lowest resolution.

    Args:
        channels: Number of channels before the first residual block, then the number after each residual block.
        dropout: Dropout probability inside the residual blocks.
        attention: Whether an attention block follows each residual block.
    """

    def __init__(self, channels: list[int], *, dropout: float, attention: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.block = nn.ModuleList(ResidualBlock(i, o, dropout) for i, o in pairs)
        self.attn = nn.ModuleList(AttentionBlock(o) for _, o in pairs) if attention else nn.ModuleList()

    def run_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all residual and attention blocks of this level to `x`: `(B, C, H, W)` -> `(B, C', H, W)`."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class EncoderLevel(Level):
    """The blocks of the codec's encoder at one resolution, followed by a layer that halves height and width.

    At the lowest resolution (`lowest`) the size is not halved, and an attention block follows each residual block.
    """

    def __init__(self, channels: list[int], *, dropout: float, lowest: bool) -> None:
        super().__init__(channels, dropout=dropout, attention=lowest)
        self.downsample = None if lowest else Downsample(channels[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.run_blocks(x)
        return x if self.downsample is None else self.downsample(x)


class DecoderLevel(Level):
    """The blocks of the codec's decoder at one resolution, followed by a layer that doubles height and width.

    At the highest resolution (`highest`) the size is not doubled. At the lowest (`lowest`) an attention block follows
    each residual block.
    """

    def __init__(self, channels: list[int], *, dropout: float, lowest: bool, highest: bool) -> None:
        super().__init__(channels, dropout=dropout, attention=lowest)
        self.upsample = None if highest else Upsample(channels[-1])

    def forward(self, x: torch.Tensor, doubling: Doubling) -> torch.Tensor:
        x = self.run_blocks(x)
        return x if self.upsample is None else self.upsample(x, doubling)


class Middle(nn.Module):
    """Residual block, attention block and residual block in sequence, applied to the codec's lowest resolution.

    The shape `(B, C, H, W)` stays.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class CodecEncoder(nn.Module):
    """Encoder of the image codec: maps pixels `(B, 3, H * f, W * f)` to latents `(B, latent_channels, H, W)`.

    `f` is the config's `downsampling`, the number of pixels per grid cell along one side. `down[0]` is the level with
    the highest resolution.
    """

    def __init__(self, config: JanusProVQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multiplier]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel([before] + [width] * config.num_res_blocks, dropout=config.dropout, lowest=i == last)
            for i, (before, width) in enumerate(zip([config.base_channels, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], config.dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(pixel_values)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class CodecDecoder(nn.Module):
    """Decoder of the image codec: maps latents `(B, latent_channels, H, W)` to pixels `(B, 3, H * f, W * f)`.

    `f` is the config's `downsampling`, the number of pixels per grid cell along one side. `up[0]` is the level with
    the lowest resolution. Each level has one residual block more than a level of the encoder. `forward` takes the
    function that doubles the grid between levels; see `fastest_doubling`.
    """

    def __init__(self, config: JanusProVQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(config.channel_multiplier)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = Middle(widths[0], config.dropout)
        self.up = nn.ModuleList(
            DecoderLevel(
                [before] + [width] * (config.num_res_blocks + 1),
                dropout=config.dropout,
                lowest=i == 0,
                highest=i == last,
            )
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: torch.Tensor, doubling: Doubling = double_then_convolve) -> torch.Tensor:
        h = self.mid(self.conv_in(latents))
        for level in self.up:
            h = level(h, doubling)
        return self.conv_out(F.silu(self.norm_out(h)))


__all__ = [
    "CodecDecoder",
    "CodecEncoder",
    "convolve_quarters",
    "double_then_convolve",
    "fastest_doubling",
    "in_fastest_format",
]
