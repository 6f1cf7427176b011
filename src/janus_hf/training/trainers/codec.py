"""Training the image codec: the VQ objective of the original's tokenizer, with what keeps small codebooks alive.

The released codec stays frozen in every stage of Janus-Pro. A world of its own needs a codec of its own: this is the
trainer for it.

Two ways to learn the codes:

* by itself: reconstruction, codebook and commitment losses (as in LlamaGen, whose tokenizer Janus uses), starting from
  k-means over the encoder's own outputs, with codes that fall out of use restarted from badly reconstructed places
  during the first part of training;
* from a teacher: where pictures are made of few distinct patches, k-means over raw pixel patches already names them
  perfectly. The encoder then learns to give every place its teacher's code (a classification), the decoder to draw the
  codes; neither can collapse.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from transformers import Trainer, TrainingArguments

from ...modeling import JanusProVQModel
from .patch_teacher import PatchTeacher, kmeans


Hook = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (reconstruction, target), both (B, 3, S, S) -> scalar


@dataclass
class CodecTrainingArguments(TrainingArguments):
    """transformers' training arguments, and the codec's own.

    Raises:
        ValueError: If a weight is negative or the restart settings are out of range.
    """

    l1_weight: float = field(default=1.0, metadata={"help": "Weight of the mean absolute pixel error."})
    l2_weight: float = field(default=1.0, metadata={"help": "Weight of the mean squared pixel error."})
    codebook_weight: float = field(default=1.0, metadata={"help": "Weight of the codebook and commitment losses."})
    perceptual_weight: float = field(default=1.0, metadata={"help": "Weight of the perceptual hook, if one is given."})
    adversarial_weight: float = field(default=0.5, metadata={"help": "Weight of the adversarial hook, if given."})
    adversarial_start: int = field(default=0, metadata={"help": "Step from which the adversarial hook counts."})
    restart_every: int = field(default=50, metadata={"help": "Restart unused codes every so many steps; 0 never."})
    restart_until: float = field(default=0.33, metadata={"help": "Share of the training during which codes restart."})

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = ("l1_weight", "l2_weight", "codebook_weight", "perceptual_weight", "adversarial_weight")
        for name in weights:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.restart_every < 0 or not 0 <= self.restart_until <= 1:
            raise ValueError(
                f"restart_every must be 0 or more and restart_until in [0, 1], got {self.restart_every} and "
                f"{self.restart_until}."
            )


@torch.no_grad()
def initialise_codebook(model: JanusProVQModel, batches: Iterable[torch.Tensor], *, seed: int = 0) -> None:
    """Set the codebook to k-means centres of the encoder's own (unit) latents, so that training starts with every code
    in use.

    Args:
        model: The codec.
        batches: Pictures `(B, 3, S, S)` in [-1, 1]; together at least as many latents as codes.
    """
    latents = [F.normalize(model.encode_latents(batch).movedim(1, -1).flatten(0, 2), dim=-1) for batch in batches]
    centres = kmeans(torch.cat(latents).float(), model.config.num_embeddings, seed=seed)
    model.quantize.embedding.weight.copy_(F.normalize(centres, dim=-1))


class CodecTrainer(Trainer):
    """transformers' `Trainer` on a `JanusProVQModel`; rows of the dataset are `{"pixel_values": (3, S, S)}` in [-1,
    1].

    Args:
        teacher: Names the codes (see the module); None learns them.
        perceptual: Optional extra loss on reconstruction and target, such as LPIPS.
        adversarial: Optional generator loss of a discriminator the caller trains.
        temperature: Of the classification against a teacher: logits are cosines divided by it.
        args, train_dataset, ...: As in `Trainer`, with `CodecTrainingArguments`.
    """

    args: CodecTrainingArguments

    def __init__(
        self,
        model: JanusProVQModel,
        *,
        teacher: PatchTeacher | None = None,
        perceptual: Hook | None = None,
        adversarial: Hook | None = None,
        temperature: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.teacher, self.perceptual, self.adversarial = teacher, perceptual, adversarial
        self.temperature = temperature
        self.sums: dict[str, float] = {}
        self.usage = torch.zeros(model.config.num_embeddings, dtype=torch.long)
        if teacher is not None:
            codes = teacher.codebook(model.config.num_embeddings, model.config.embed_dim, seed=self.args.seed)
            model.quantize.embedding.weight.data.copy_(codes)
            model.quantize.embedding.requires_grad_(False)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the parts that the arguments name; each part is logged."""
        pixel_values = inputs["pixel_values"]
        if self.teacher is None:
            output = model(pixel_values)
            reconstruction = output.pixel_values
            losses = {"codebook": self.args.codebook_weight * (output.codebook_loss + output.commitment_loss)}
            if model.training:
                self._restart_unused_codes(model, pixel_values, output)
        else:
            ids = self.teacher(pixel_values)
            output = model(pixel_values, image_ids=ids)
            reconstruction = output.pixel_values
            codebook = self.accelerator.unwrap_model(model).quantize.codebook(pixel_values.device)
            cosines = output.latents.flatten(0, 1) @ codebook.T
            losses = {"codes": F.cross_entropy(cosines / self.temperature, ids.flatten())}
        losses["l1"] = self.args.l1_weight * F.l1_loss(reconstruction, pixel_values)
        losses["l2"] = self.args.l2_weight * F.mse_loss(reconstruction, pixel_values)
        if self.perceptual is not None:
            losses["perceptual"] = self.args.perceptual_weight * self.perceptual(reconstruction, pixel_values)
        if self.adversarial is not None and self.state.global_step >= self.args.adversarial_start:
            losses["adversarial"] = self.args.adversarial_weight * self.adversarial(reconstruction, pixel_values)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()
        self.sums["batches"] = self.sums.get("batches", 0.0) + 1
        loss = torch.stack(list(losses.values())).sum()
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each part of the loss since the last log."""
        if batches := self.sums.pop("batches", 0.0):
            logs = logs | {f"{name}_loss": round(value / batches, 6) for name, value in self.sums.items()}
            self.sums = {}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def _restart_unused_codes(self, model: Any, pixel_values: torch.Tensor, output: Any) -> None:
        """Give codes that nothing chose for a while to the places that are drawn worst.

        Once per step, with the last of its micro-batches: each of them alone leaves many codes unused. Early only:
        later it would split what is common (a plain background) into many codes for the same thing.
        """
        every, step = self.args.restart_every, self.state.global_step
        self.usage += output.image_ids.flatten().bincount(minlength=len(self.usage)).cpu()
        if not self.accelerator.sync_gradients or not every or (step + 1) % every:
            return
        if step >= self.args.restart_until * self.state.max_steps:
            return
        codec = self.accelerator.unwrap_model(model)
        unused = (self.accelerator.reduce(self.usage.to(pixel_values.device)) == 0).nonzero().squeeze(-1)
        grid = codec.config.num_patches
        error = F.adaptive_avg_pool2d((output.pixel_values - pixel_values).square().mean(dim=1, keepdim=True), grid)
        worst = error.flatten().topk(min(len(unused), error.numel())).indices
        table = codec.quantize.embedding.weight
        table[unused[: len(worst)]] = output.latents.flatten(0, 1)[worst].to(table)
        broadcast(table.data)  # every rank takes the first one's choice
        self.usage.zero_()


__all__ = ["CodecTrainer", "CodecTrainingArguments", "PatchTeacher", "initialise_codebook", "kmeans"]
