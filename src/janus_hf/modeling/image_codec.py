"""The image codec (VQ-16 of the original, janus/models/vq_model.py): pictures <-> grids of codebook ids.

A convolutional autoencoder in the VQGAN family. What is unusual:

* Latents and codebook rows are compared, looked up and trained on the unit sphere (l2-normalised). transformers' own
  Janus normalises only when decoding, which changes ids, losses and reconstructions; hence our own codec.
* Attention stands at the lowest resolution only.
* Strided convolutions pad right and bottom only.

Attribute names are those of transformers' Janus. `B` batch, `C H W` latent channels and grid, `P = H * W`, `K` codes,
`E` code width.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..configuration import JanusProVQConfig
from ..generation.sampling import check_codes
from .codec_blocks import CodecDecoder, CodecEncoder, _channels_last
from .outputs import JanusProVQOutput


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
