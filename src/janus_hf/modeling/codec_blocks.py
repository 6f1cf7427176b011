"""The codec's encoder and decoder."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import JanusProVQConfig


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """The memory layout that convolution kernels work in; what follows keeps it."""
    return x.contiguous(memory_format=torch.channels_last)


class ResidualBlock(GradientCheckpointingLayer):
    """Two normalised 3x3 convolutions around a shortcut: `(B, in, H, W)` -> `(B, out, H, W)`."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
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
    """Single-head self-attention over the grid, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q_BCP, k_BCP, v_BCP = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        # Spelled out in the original's order of operations, not through a fused kernel: pixels are truncated to
        # 8 bits, so that a difference in the last bit of a float can be seen. On 24x24 places it costs nothing.
        weights_BPP = torch.bmm(q_BCP.transpose(1, 2), k_BCP) * q_BCP.shape[1] ** -0.5
        h = torch.bmm(v_BCP, weights_BPP.softmax(dim=-1).transpose(1, 2)).view_as(x)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halves the grid with a strided convolution padded at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DoublingConv2d(nn.Conv2d):
    """Doubles the grid by repetition, then convolves: `(B, C, H, W)` -> `(B, C, 2 H, 2 W)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A processor's convolutions take as long as their multiplications.
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
            return self._in_quarters(x)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def _in_quarters(self, x: torch.Tensor) -> torch.Tensor:
        """The same in 4/9 of the multiplications.

        Of the three rows that a kernel meets two are copies of one, and so with columns. A pixel of the result, its
        row and column even or odd, is therefore a 2x2 convolution, by sums of the kernel's taps, of what is not
        doubled.
        """
        height, width = x.shape[-2:]
        doubled = _channels_last(x.new_empty(len(x), self.out_channels, 2 * height, 2 * width))
        for row in (0, 1):
            for column in (0, 1):
                kernel = _merge_taps(_merge_taps(self.weight, 2, row), 3, column)
                quarter = F.conv2d(x, kernel, self.bias, padding=1)
                doubled[:, :, row::2, column::2] = quarter[:, :, row : row + height, column : column + width]
        return doubled


class Upsample(nn.Module):
    """Doubles the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def _merge_taps(weight: torch.Tensor, dim: int, parity: int) -> torch.Tensor:
    """Three taps -> two: at even places the last two meet the same pixel, at odd ones the first two."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last] if parity == 0 else [first + middle, last], dim)


class Level(nn.Module):
    """One resolution: residual blocks, attention after each of them at the lowest resolution, then a resampler or
    none.
    """

    def __init__(
        self,
        channels: list[int],
        *,
        dropout: float,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))
        self.block = nn.ModuleList(ResidualBlock(i, o, dropout) for i, o in pairs)
        self.attn = nn.ModuleList(AttentionBlock(o) for _, o in pairs) if attention else nn.ModuleList()
        if downsample:
            self.downsample = Downsample(channels[-1])
        if upsample:
            self.upsample = Upsample(channels[-1])
        self.resampler = "downsample" if downsample else "upsample" if upsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return getattr(self, self.resampler)(x) if self.resampler else x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class CodecEncoder(nn.Module):
    """`(B, 3, H * f, W * f)` pixels -> `(B, latent_channels, H, W)`, `f` the codec's downsampling."""

    def __init__(self, config: JanusProVQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multiplier]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [before] + [width] * config.num_res_blocks,
                dropout=config.dropout,
                attention=i == last,
                downsample=i != last,
            )
            for i, (before, width) in enumerate(zip([config.base_channels, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], config.dropout)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(pixel_values)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class CodecDecoder(nn.Module):
    """`(B, latent_channels, H, W)` -> `(B, 3, H * f, W * f)` pixels. `up[0]` is the lowest resolution."""

    def __init__(self, config: JanusProVQConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in reversed(config.channel_multiplier)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = Middle(widths[0], config.dropout)
        self.up = nn.ModuleList(
            Level(
                [before] + [width] * (config.num_res_blocks + 1),
                dropout=config.dropout,
                attention=i == 0,
                upsample=i != last,
            )
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        h = self.mid(self.conv_in(latents))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
