"""The image codec: an autoencoder that maps images to grids of codes and back. A code is a codebook index.

It is the VQ-16 of deepseek-ai/Janus (janus/models/vq_model.py), a convolutional autoencoder in the VQGAN family.
Unlike most of these, it l2-normalises latents and codebook vectors wherever they are compared, looked up or trained.
transformers' own Janus normalises only when decoding, which changes codes, losses and reconstructions. This package
therefore has its own codec.

Attribute names are those of transformers' Janus. `B` batch, `H W` height and width of the grid, `P = H * W` codes per
image, `K` codebook entries, `E` width of a codebook vector, `S` side of an image in pixels, `f` the codec's
downsampling (pixels per grid cell along one side).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..arguments import check_integer, describe
from ..configuration import JanusProVQConfig
from ..errors import not_finite
from ..generation.generation_arguments import check_integer_tensor
from ..generation.sampling import check_codes
from .codec_blocks import CodecDecoder, CodecEncoder, fastest_doubling, in_fastest_format
from .outputs import JanusProVQOutput
from .weight_files import LoadedWholeMixin


class VectorQuantizer(nn.Module):
    """Codebook `(K, E)` of the image codec. Its vectors are l2-normalised wherever they are used.

    Args:
        num_codes: Number of codebook vectors (`K`).
        width: Width of a codebook vector (`E`).
    """

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)

    def codebook(self, device: torch.device) -> torch.Tensor:
        """Return all codebook vectors `(K, E)`, each scaled to norm 1, on `device`."""
        # The table is read by calling its module, so that hooks can load it if it is offloaded.
        return F.normalize(self.embedding(torch.arange(self.embedding.num_embeddings, device=device)), dim=-1)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the codes `(N,)` int64 of the codebook vectors nearest to latents `(N, E)` with rows of norm 1."""
        # Among vectors of norm 1 the nearest is the one with the largest inner product: |z - e|^2 = 2 - 2 z.e.
        return (latents @ self.codebook(latents.device).to(latents).T).argmax(dim=-1)

    def lookup(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Return the codebook vectors `(..., E)`, scaled to norm 1, that have the indices `image_ids` `(...)`."""
        return F.normalize(self.embedding(image_ids), dim=-1)


class JanusProVQModel(LoadedWholeMixin):
    """Image codec that encodes images as codes (`encode_image_ids`) and decodes codes to images (`decode_image_ids`).

    A code is the index of a codebook vector. `forward` encodes and decodes in sequence and computes the losses that
    train the codec.
    """

    config: JanusProVQConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # transformers refuses an attention kernel for the whole model unless every submodel declares support for it. The
    # attention blocks of the codec use no such kernel.
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
        # The test is for the embedding and not for the `VectorQuantizer` around it, because transformers skips modules
        # without parameters of their own.
        if module is self.quantize.embedding:
            # As in vq_model.py of deepseek-ai/Janus: uniform in +-1/K, then scaled to norm 1.
            bound = 1.0 / module.num_embeddings
            init.uniform_(module.weight, -bound, bound)
            init.copy_(module.weight, F.normalize(module.weight, dim=-1))

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixels `(B, 3, S, S)` in [-1, 1] as latents `(B, E, H, W)`, neither quantised nor normalised.

        `S` is the side of an image in pixels, `E` the width of a codebook vector, and `H` and `W` the sides of the
        codec's grid.
        """
        return self.quant_conv(self.encoder(in_fastest_format(pixel_values.to(self.dtype))))

    @torch.no_grad()
    def encode_image_ids(self, pixel_values: torch.Tensor, *, batch_size: int = 8) -> torch.Tensor:
        """Encode images as codes, which are indices into the codebook.

        Args:
            pixel_values: `(B, 3, S, S)` with values in [-1, 1]; `S` is the config's `image_size`.
            batch_size: Number of images that are encoded at once. It bounds the memory, which is about 0.5 GB per
                image of 384 pixels in float32.

        Returns:
            `(B, P)` int64: the `P` codes of each image, row by row from the top left of the grid.

        Raises:
            TypeError: If `pixel_values` is no tensor of floating-point numbers.
            ValueError: If `pixel_values` has another shape, or `batch_size` is below 1.
            FloatingPointError: If the latents are not finite.
        """
        side = self.config.image_size
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            got = f"dtype {pixel_values.dtype}" if isinstance(pixel_values, torch.Tensor) else describe(pixel_values)
            raise TypeError(
                f"`pixel_values` must be a tensor of floating-point numbers in [-1, 1], got {got}: prepare images "
                "with the image processor and mode='generation'."
            )
        check_integer(batch_size, "batch_size", "encode one image or more at once")
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (self.config.in_channels, side, side):
            raise ValueError(
                f"`pixel_values` must be of shape (B, {self.config.in_channels}, {side}, {side}), got "
                f"{tuple(pixel_values.shape)}: prepare images with the image processor and mode='generation'."
            )
        parts = [self._encode(part) for part in self._to_own_device(pixel_values).split(batch_size)]
        return _joined(parts)

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixels `(B, 3, S, S)` on the codec's device as codes `(B, P)` int64; check the latents only."""
        return self._nearest(self._checked(self._unit_latents(pixel_values), "latents"))

    def _checked(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """Return computed values, or raise a FloatingPointError if they are not finite.

        The check waits for the device. Without it, NaN would become a code or a black pixel like any other.
        """
        # A sum is one kernel and one pass over the values, and it is not finite if one of them is not. A sum of large
        # values may overflow, so only the values themselves are a reason for the error.
        if not math.isfinite(values.sum(dtype=torch.float32)) and not values.isfinite().all():
            raise not_finite(
                f"The codec's {name}", "the image codec", values.dtype, "set the codec to float32 (`codec.float()`)"
            )
        return values

    def _unit_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixels `(B, 3, S, S)` in [-1, 1] as latents `(B, H, W, E)`, each of width `E` and norm 1."""
        return F.normalize(self.encode_latents(pixel_values).movedim(1, -1), dim=-1)

    def _nearest(self, latents_BHWE: torch.Tensor) -> torch.Tensor:
        """Return the codes `(B, H * W)` of the codebook vectors nearest to latents `(B, H, W, E)` of norm 1."""
        return self.quantize.nearest(latents_BHWE.flatten(0, 2)).view(len(latents_BHWE), -1)

    @torch.no_grad()
    def decode_image_ids(self, image_ids: torch.Tensor, *, batch_size: int = 8) -> torch.Tensor:
        """Decode codes, which are indices into the codebook, to images.

        Args:
            image_ids: `(B, P)` integers: the `P` codes of each image, row by row from the top left of the grid.
            batch_size: Number of images that are decoded at once. It bounds the memory, which is about 0.5 GB per
                image of 384 pixels in float32.

        Returns:
            Pixels `(B, 3, S, S)` in the model's dtype. The values lie in about [-1, 1], because the decoder's output
            is not clipped. `S` is the config's `image_size`.

        Raises:
            TypeError: If `image_ids` is no tensor of integers.
            ValueError: If there are not `P` codes per image, a code lies outside the codebook, or `batch_size` is
                below 1.
            FloatingPointError: If the pixels are not finite.
        """
        check_integer(batch_size, "batch_size", "decode one image or more at once")
        grid, codes = self.config.num_patches, self.config.num_embeddings
        check_integer_tensor(image_ids, "image_ids", f"(B, {grid * grid})")
        if image_ids.ndim != 2 or image_ids.shape[1] != grid * grid:
            raise ValueError(
                f"`image_ids` must be of shape (B, {grid * grid}), one code for each cell of the {grid}x{grid} grid, "
                f"got {tuple(image_ids.shape)}: pass the codes of whole images."
            )
        check_codes(image_ids, codes)
        parts = [self._decode(part) for part in self._to_own_device(image_ids).split(batch_size)]
        return self._checked(_joined(parts), "pixels")

    def _decode(self, image_ids: torch.Tensor) -> torch.Tensor:
        """Decode codes `(B, P)` on the codec's device to pixels `(B, 3, S, S)`, without checks."""
        grid = self.config.num_patches
        quantized_BEHW = self.quantize.lookup(image_ids).unflatten(1, (grid, grid)).movedim(-1, 1)
        return self._decode_quantized(in_fastest_format(quantized_BEHW)).contiguous()

    def _decode_quantized(self, quantized_BEHW: torch.Tensor) -> torch.Tensor:
        """Decode codebook vectors `(B, E, H, W)` to pixels `(B, 3, S, S)`."""
        latents = self.post_quant_conv(quantized_BEHW)
        # The function is chosen by the latents and not by the weights, which are on "meta" while they are offloaded.
        return self.decoder(latents, fastest_doubling(latents))

    def _to_own_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` on the codec's device, or unchanged if the codec's weights are offloaded."""
        # Offloaded weights are on "meta", and the hooks that load them move the inputs too.
        return tensor if self.device.type == "meta" else tensor.to(self.device)

    def forward(self, pixel_values: torch.Tensor, image_ids: torch.Tensor | None = None) -> JanusProVQOutput:
        """Encode images, quantise their latents, decode these, and compute the losses that train the codec.

        The losses are mean squared distances between latents and codebook vectors of norm 1, as in vq_model.py of
        deepseek-ai/Janus. The codebook loss has gradients for the codebook only, and the commitment loss (weighted by
        `commitment_cost`) for the encoder only. Gradients of the reconstruction pass through the quantisation
        unchanged (straight-through).

        Args:
            pixel_values: `(B, 3, S, S)` in [-1, 1].
            image_ids: Codes `(B, P)` from another model (a teacher), used in place of the nearest codes for the
                reconstruction and the losses. The reconstruction then does not depend on the encoder.
        """
        latents_BHWE = self._unit_latents(pixel_values)
        taught = image_ids is not None
        if image_ids is None:
            image_ids = self._nearest(latents_BHWE.detach())
        codes_BHWE = self.quantize.lookup(image_ids).view_as(latents_BHWE)
        quantized_BHWE = codes_BHWE if taught else latents_BHWE + (codes_BHWE - latents_BHWE).detach()
        return JanusProVQOutput(
            pixel_values=self._decode_quantized(quantized_BHWE.movedim(-1, 1).contiguous()),
            image_ids=image_ids,
            latents=latents_BHWE.flatten(1, 2),
            codebook_loss=F.mse_loss(codes_BHWE, latents_BHWE.detach()),
            commitment_loss=self.config.commitment_cost * F.mse_loss(codes_BHWE.detach(), latents_BHWE),
        )


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors joined along their first axis. A single one is returned as it is, where `torch.cat` copies it."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


__all__ = ["JanusProVQModel"]
