"""The image codec (VQ-16 of the original, janus/models/vq_model.py): pictures <-> grids of codebook ids.

A convolutional autoencoder in the VQGAN family. What is unusual:

* Latents and codebook rows are compared, looked up and trained on the unit sphere (l2-normalised). transformers' own
  Janus normalises only when decoding, which changes ids, losses and reconstructions; hence our own codec.
* Attention stands at the lowest resolution only.
* Strided convolutions pad right and bottom only.

Attribute names are those of transformers' Janus. `B` batch, `C H W` latent channels and grid, `P = H * W`, `K` codes,
`E` code width.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import JanusProVQConfig
from ..generation.sampling import check_codes
from .outputs import JanusProVQOutput


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


class VectorQuantizer(nn.Module):
    """Nearest codebook entry on the unit sphere."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)

    def codebook(self, device: torch.device) -> torch.Tensor:
        """`(K, E)`, rows of norm 1. Read by calling the module, so that an offloaded table is brought in by its
        hooks.
        """
        return F.normalize(self.embedding(torch.arange(self.embedding.num_embeddings, device=device)), dim=-1)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Unit latents `(N, E)` -> ids `(N,)` int64 of the nearest codes.

        On the unit sphere the nearest code is the one with the largest inner product: |z - e|^2 = 2 - 2 z.e.
        """
        return (latents @ self.codebook(latents.device).to(latents).T).argmax(dim=-1)

    def lookup(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Ids `(...)` -> unit code vectors `(..., E)`."""
        return F.normalize(self.embedding(image_ids), dim=-1)


class JanusProVQModel(PreTrainedModel):
    """Pictures <-> codes. `encode_image_ids` and `decode_image_ids` are the two directions; `forward` reconstructs,
    for training.
    """

    config: JanusProVQConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Any kernel may be asked of the whole model; the codec's wide single head runs through SDPA whatever it is.
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ("JanusProVQModel",)

    def __init__(self, config: JanusProVQConfig) -> None:
        super().__init__(config)
        self.encoder = CodecEncoder(config)
        self.quantize = VectorQuantizer(config.num_embeddings, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = CodecDecoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Asked of the table, not of the quantizer around it: transformers skips modules without parameters of their
        # own.
        if module is self.quantize.embedding:
            # vq_model.py: uniform in +-1/K, then projected onto the sphere.
            bound = 1.0 / module.num_embeddings
            init.uniform_(module.weight, -bound, bound)
            init.copy_(module.weight, F.normalize(module.weight, dim=-1))

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels `(B, 3, H * f, W * f)` in [-1, 1] -> latents before quantisation `(B, E, H, W)`, not normalised."""
        return self.quant_conv(self.encoder(_channels_last(pixel_values.to(self.dtype))))

    @torch.no_grad()
    def encode_image_ids(self, pixel_values: torch.Tensor, *, batch_size: int = 8) -> torch.Tensor:
        """Pictures -> codes.

        Args:
            pixel_values: `(B, 3, S, S)`, values in [-1, 1], `S` the model's `image_size`.
            batch_size: Encode so many at a time, which bounds the memory (about 0.5 GB each at 384 pixels in float32).

        Returns:
            `(B, P)` int64 in `[0, K)`, row by row from the top left.

        Raises:
            ValueError: If the pictures are of another size.
        """
        side = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (self.config.in_channels, side, side):
            raise ValueError(
                f"Expected pixel_values of shape (B, {self.config.in_channels}, {side}, {side}), got "
                f"{tuple(pixel_values.shape)}. Prepare pictures with the image processor and mode='generation'."
            )
        parts = [self._encode(part) for part in self._to_own_device(pixel_values).split(batch_size)]
        return torch.cat(parts)

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        latents_BHWE = F.normalize(self.encode_latents(pixel_values).movedim(1, -1), dim=-1)
        return self.quantize.nearest(latents_BHWE.flatten(0, 2)).view(len(pixel_values), -1)

    @torch.no_grad()
    def decode_image_ids(self, image_ids: torch.Tensor, *, batch_size: int = 8) -> torch.Tensor:
        """Codes -> pictures.

        Args:
            image_ids: `(B, P)` integers in `[0, K)`.
            batch_size: Decode so many at a time, which bounds the memory (about 0.5 GB each at 384 pixels in float32).

        Returns:
            `(B, 3, S, S)` in the model's dtype, values in about [-1, 1] (the decoder is not clipped).

        Raises:
            ValueError: If there are not `P` codes per picture, or a code lies outside the codebook.
        """
        grid, codes = self.config.num_patches, self.config.num_embeddings
        if image_ids.ndim != 2 or image_ids.shape[1] != grid * grid:
            raise ValueError(
                f"Expected image_ids of shape (B, {grid * grid}), one code for each cell of the {grid}x{grid} grid, "
                f"got {tuple(image_ids.shape)}."
            )
        check_codes(image_ids, codes)
        return torch.cat([self._decode(part) for part in self._to_own_device(image_ids).split(batch_size)])

    def _decode(self, image_ids: torch.Tensor) -> torch.Tensor:
        grid = self.config.num_patches
        quantized_BEHW = self.quantize.lookup(image_ids).unflatten(1, (grid, grid)).movedim(-1, 1)
        return self.decoder(self.post_quant_conv(_channels_last(quantized_BEHW))).contiguous()

    def _to_own_device(self, tensor: torch.Tensor) -> torch.Tensor:
        # An offloaded codec lives on "meta"; its hooks move the inputs then.
        return tensor if self.device.type == "meta" else tensor.to(self.device)

    def forward(self, pixel_values: torch.Tensor, image_ids: torch.Tensor | None = None) -> JanusProVQOutput:
        """Encode, quantise (straight-through gradient), decode, with the two losses that pull codes and latents
        together.

        Losses are mean squared distances between unit vectors, as in vq_model.py: the codebook term moves the codes,
        the commitment term (weighted by `commitment_cost`) moves the encoder.

        Args:
            pixel_values: `(B, 3, S, S)` in [-1, 1].
            image_ids: `(B, P)` codes to draw from and to be near to, instead of the nearest ones: a teacher's. The
                reconstruction then does not depend on the encoder.
        """
        latents_BHWE = F.normalize(self.encode_latents(pixel_values).movedim(1, -1), dim=-1)
        taught = image_ids is not None
        if image_ids is None:
            image_ids = self.quantize.nearest(latents_BHWE.detach().flatten(0, 2)).view(len(latents_BHWE), -1)
        codes_BHWE = self.quantize.lookup(image_ids).view_as(latents_BHWE)
        drawn_BHWE = codes_BHWE if taught else latents_BHWE + (codes_BHWE - latents_BHWE).detach()
        return JanusProVQOutput(
            pixel_values=self.decoder(self.post_quant_conv(drawn_BHWE.movedim(-1, 1).contiguous())),
            image_ids=image_ids,
            latents=latents_BHWE.flatten(1, 2),
            codebook_loss=F.mse_loss(codes_BHWE, latents_BHWE.detach()),
            commitment_loss=self.config.commitment_cost * F.mse_loss(codes_BHWE.detach(), latents_BHWE),
        )


__all__ = ["JanusProVQModel"]
