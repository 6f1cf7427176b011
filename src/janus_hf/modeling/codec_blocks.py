"""The two convolutional networks of the image codec, encoder and decoder, and the blocks they are made of.

What is unusual for a VQGAN: attention stands at the lowest resolution only, and strided convolutions pad the right and
the bottom only. Attribute names are those of transformers' Janus.

`B` batch, `C H W` channels and grid, `P = H * W` cells of the grid.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import JanusProVQConfig


# Doubles a grid `(B, C, H, W)` by repetition and applies a 3x3 convolution, given by its weight and bias.
Doubling = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the normalisation that the codec uses everywhere: 32 groups, eps 1e-6."""
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return `x` in the memory layout that convolution kernels work in. Convolutions keep it for what follows."""
    return x.contiguous(memory_format=torch.channels_last)


def double_then_convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Double the grid of `x` by repetition, then convolve it.

    Args:
        x: `(B, C, H, W)`.
        weight: `(C', C, 3, 3)`.
        bias: `(C',)`.

    Returns:
        `(B, C', 2 H, 2 W)`.
    """
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def convolve_quarters(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `double_then_convolve` with 4/9 of the multiplications, and with sums in another order.

    Of the three rows of the doubled grid that a kernel covers, two are copies of one row of `x`, and so with columns.
    Each output pixel is therefore a 2x2 convolution of `x` with sums of the kernel's taps. Which taps are summed
    depends on whether its row and column are even or odd, so the output is computed in four quarters.
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
    """Sum the two taps that meet the same pixel: the last two at even positions, the first two at odd ones."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last] if parity == 0 else [first + middle, last], dim)


def fastest_doubling(x: torch.Tensor) -> Doubling:
    """Return the faster way to double grids of the device and dtype of `x`.

    A processor's float32 convolutions take as long as their multiplications, so there it is `convolve_quarters`. While
    gradients are recorded it is always `double_then_convolve`, the original's order of operations.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
        return convolve_quarters
    return double_then_convolve


class ResidualBlock(GradientCheckpointingLayer):
    """Two normalised 3x3 convolutions around a shortcut: `(B, in, H, W)` -> `(B, out, H, W)`."""

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
    """Single-head self-attention over the cells of the grid, added to its input: `(B, C, H, W)` -> the same shape."""

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
        # Spelled out in the original's order of operations, not through a fused kernel: pixels are truncated to
        # 8 bits, so that a difference in the last bit of a float can be seen. On 24x24 cells it costs nothing.
        weights_BPP = torch.bmm(q_BCP.transpose(1, 2), k_BCP) * q_BCP.shape[1] ** -0.5
        h = torch.bmm(v_BCP, weights_BPP.softmax(dim=-1).transpose(1, 2)).view_as(x)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Strided convolution that halves the grid, padded at the right and the bottom: `(B, C, H/2, W/2)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DoublingConv2d(nn.Conv2d):
    """3x3 convolution of a grid that is doubled first: `(B, C, H, W)` -> `(B, C, 2 H, 2 W)`.

    The caller passes the function that computes it, so that the layer has no branch on the device. The function runs
    inside this module's `forward`, because hooks that offload weights bring them in for exactly that time.
    """

    def forward(self, x: torch.Tensor, doubling: Doubling = double_then_convolve) -> torch.Tensor:
        return doubling(x, self.weight, self.bias)


class Upsample(nn.Module):
    """Convolution that doubles the grid. It is a module of its own for the name that its weights have in files."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, doubling: Doubling) -> torch.Tensor:
        return self.conv(x, doubling)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention at the lowest one.

    Args:
        channels: Number of channels before the first block and after each block.
        dropout: Dropout probability inside the blocks.
        attention: Whether attention follows each block.
    """

    def __init__(self, channels: list[int], *, dropout: float, attention: bool) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.block = nn.ModuleList(ResidualBlock(i, o, dropout) for i, o in pairs)
        self.attn = nn.ModuleList(AttentionBlock(o) for _, o in pairs) if attention else nn.ModuleList()

    def run_blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the blocks, `(B, C, H, W)` -> `(B, C', H, W)`."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class EncoderLevel(Level):
    """A `Level` that halves the grid at its end, except at the lowest resolution, where attention is."""

    def __init__(self, channels: list[int], *, dropout: float, lowest: bool) -> None:
        super().__init__(channels, dropout=dropout, attention=lowest)
        self.downsample = None if lowest else Downsample(channels[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.run_blocks(x)
        return x if self.downsample is None else self.downsample(x)


class DecoderLevel(Level):
    """A `Level` that doubles the grid at its end, except at the highest resolution."""

    def __init__(self, channels: list[int], *, dropout: float, lowest: bool, highest: bool) -> None:
        super().__init__(channels, dropout=dropout, attention=lowest)
        self.upsample = None if highest else Upsample(channels[-1])

    def forward(self, x: torch.Tensor, doubling: Doubling) -> torch.Tensor:
        x = self.run_blocks(x)
        return x if self.upsample is None else self.upsample(x, doubling)


class Middle(nn.Module):
    """Residual block, attention and residual block at the lowest resolution: `(B, C, H, W)` -> the same shape."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class CodecEncoder(nn.Module):
    """Network from pixels `(B, 3, H * f, W * f)` to latents `(B, latent_channels, H, W)`.

    `f` is the codec's downsampling. `down[0]` is the highest resolution.
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
    """Network from latents `(B, latent_channels, H, W)` to pixels `(B, 3, H * f, W * f)`.

    `f` is the codec's downsampling. `up[0]` is the lowest resolution. Each level has one residual block more than in
    the encoder. `forward` takes the function that doubles the grid between levels; see `fastest_doubling`.
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
    "channels_last",
    "convolve_quarters",
    "double_then_convolve",
    "fastest_doubling",
]
