"""`CodecTrainer`, which trains an image codec (VQ tokenizer), with its arguments and the initialisation of a codebook.

The codec maps an image to a grid of codes and back; its codebook holds one vector per code. All training stages of
Janus-Pro keep the released codec frozen. Images of another kind, such as synthetic ones, need a codec of their own,
which this trainer trains. There are two ways to learn the codes:

* without a teacher: with reconstruction, codebook and commitment losses, as in LlamaGen, whose tokenizer Janus uses.
  Call `initialise_codebook` before training. During the first part of training, the vectors of codes that are no
  longer used are replaced by the encoder's outputs at positions that are reconstructed badly (restarts).
* with a teacher: if images consist of few distinct patches, k-means over the pixels of patches already assigns codes
  without error. The encoder then learns to predict the teacher's code at every position (a classification), and the
  decoder learns to reconstruct the image from the codes. The codebook is fixed, so its use cannot collapse to a few
  codes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from torch import nn

from ...arguments import describe
from ...modeling import JanusProVQModel
from ...modeling.outputs import JanusProVQOutput
from .option_tables import (
    CODEC_FIXED,
    CODEC_KEYWORDS,
    CODEC_REFUSED,
    changed,
    check_fixed,
    check_kinds,
    refuse_keywords,
)
from .patch_teacher import PatchTeacher, kmeans
from .repeatable import RepeatableTrainer
from .run_arguments import RunArguments


# Function from a reconstruction and its target, both `(B, 3, S, S)` with values in about [-1, 1], to a scalar loss.
Hook = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class CodecTrainingArguments(RunArguments):
    """transformers' training arguments, with the weights of the codec's losses and the settings of restarts.

    A restart gives new vectors to codes that are no longer used.

    Raises:
        ValueError: If a weight is negative, a setting of restarts is out of range, or an option of transformers is
            changed that must keep its value here (`CODEC_FIXED`).
    """

    l1_weight: float = field(default=1.0, metadata={"help": "Weight of the mean absolute pixel error."})
    l2_weight: float = field(default=1.0, metadata={"help": "Weight of the mean squared pixel error."})
    codebook_weight: float = field(default=1.0, metadata={"help": "Weight of the codebook and commitment losses."})
    perceptual_weight: float = field(default=1.0, metadata={"help": "Weight of the perceptual loss, if one is given."})
    adversarial_weight: float = field(
        default=0.5, metadata={"help": "Weight of the adversarial loss, if one is given."}
    )
    adversarial_start: int = field(default=0, metadata={"help": "Step from which the adversarial loss is added."})
    restart_every: int = field(
        default=50, metadata={"help": "Number of steps between restarts of unused codes; 0 turns restarts off."}
    )
    restart_until: float = field(
        default=0.33, metadata={"help": "Fraction of the training during which codes restart."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["pixel_values"], metadata={"help": "Keep it: images are their own labels."}
    )
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Hub token of uploads; null uses the environment's. No file of the run contains it."},
    )

    def __post_init__(self) -> None:
        check_kinds(self)
        check_fixed(self, CODEC_FIXED)
        super().__post_init__()
        weights = ("l1_weight", "l2_weight", "codebook_weight", "perceptual_weight", "adversarial_weight")
        for name in weights:
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}: use 0 to turn it off.")
        if self.restart_every < 0 or not 0 <= self.restart_until <= 1:
            raise ValueError(
                "`restart_every` must be 0 or more and `restart_until` in [0, 1], got "
                f"{self.restart_every} and {self.restart_until}: set restart_every to 0 for no restarts."
            )


@torch.no_grad()
def initialise_codebook(model: JanusProVQModel, batches: Iterable[torch.Tensor], *, seed: int = 0) -> None:
    """Set the codebook of a codec to k-means centres of its encoder's outputs, so that all codes are used at first.

    Args:
        model: The codec; its codebook is changed in place.
        batches: Batches of images `(B, 3, S, S)` with values in [-1, 1]. The encoder's outputs for all of them must
            have at least as many positions as there are codes.
        seed: Random seed of k-means.

    Raises:
        ValueError: If there are fewer positions than codes.
    """
    # The latents are scaled to unit length, because the codec compares latents and codes by their angle.
    latents = [F.normalize(model.encode_latents(batch).movedim(1, -1).flatten(0, 2), dim=-1) for batch in batches]
    centres = kmeans(torch.cat(latents).float(), model.config.num_embeddings, seed=seed)
    model.quantize.embedding.weight.copy_(F.normalize(centres, dim=-1))


class CodecTrainer(RepeatableTrainer):
    """transformers' `Trainer` for the image codec, a `JanusProVQModel`.

    Rows of the dataset are dicts `{"pixel_values": (3, S, S)}` with float values in [-1, 1].

    Args:
        model: The codec.
        teacher: Function that assigns a code to every patch of an image. The encoder learns to predict these codes,
            and the teacher's codebook replaces the codec's and is frozen. With None, the codec learns its own codes by
            reconstruction, codebook and commitment losses.
        perceptual: Optional further loss between reconstruction and image, such as LPIPS.
        adversarial: Optional generator loss of a discriminator, which the caller trains.
        temperature: Temperature of the classification with a teacher. Its logits are the cosines between the encoder's
            outputs and the codebook, divided by the temperature. None is 0.05.
        kwargs: Arguments of `transformers.Trainer`; `args` must be a `CodecTrainingArguments`. `compute_loss_func` and
            `model_init` have no effect here and are refused by name.

    Raises:
        TypeError: If an argument is unknown, refused or of the wrong kind.
        ValueError: If an option has no effect because of the other arguments.
    """

    args: CodecTrainingArguments

    def __init__(
        self,
        model: JanusProVQModel,
        *,
        teacher: PatchTeacher | None = None,
        perceptual: Hook | None = None,
        adversarial: Hook | None = None,
        temperature: float | None = None,
        **kwargs: Any,
    ) -> None:
        own = {"teacher": teacher, "perceptual": perceptual, "adversarial": adversarial, "temperature": temperature}
        refuse_keywords({**own, **kwargs}, CODEC_REFUSED, CODEC_KEYWORDS | own.keys())
        if not isinstance(model, JanusProVQModel):
            raise TypeError(
                f"`model` must be a JanusProVQModel, got {describe(model)}: pass the codec, model.vqmodel."
            )
        if not isinstance(args := kwargs.get("args"), CodecTrainingArguments):
            raise TypeError(f"`args` must be a CodecTrainingArguments, got {describe(args)}: pass one.")
        for names, needed, met in (
            ("perceptual_weight", "`perceptual`", perceptual is not None),
            ("adversarial_weight adversarial_start", "`adversarial`", adversarial is not None),
            ("codebook_weight restart_every restart_until", "no `teacher`", teacher is None),
        ):
            if not met and (idle := changed(args, names)):
                raise ValueError(
                    f"`{idle[0]}` must come together with {needed}, without which it has no effect, got "
                    f"{getattr(args, idle[0])!r}: leave it out, or change the arguments of the trainer."
                )
        if teacher is None and temperature is not None:
            raise ValueError(
                f"`temperature` must be None without a teacher, got {temperature}: there is no classification."
            )
        super().__init__(model=model, **kwargs)
        # The losses are means over a micro-batch, so transformers must average them over accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.teacher, self.perceptual, self.adversarial = teacher, perceptual, adversarial
        self.temperature = 0.05 if temperature is None else temperature
        # Sum of each loss term since the last log, and under "batches" the number of micro-batches in the sums.
        self.sums: dict[str, float] = {}
        # Number of times that each code was used since the last restart.
        self.usage = torch.zeros(model.config.num_embeddings, dtype=torch.long)
        if teacher is not None:
            codes = teacher.codebook(model.config.num_embeddings, model.config.embed_dim, seed=self.args.seed)
            model.quantize.embedding.weight.data.copy_(codes)
            model.quantize.embedding.requires_grad_(False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the weighted sum of the codec's losses on a micro-batch, and record each loss for the log.

        Args:
            model: The codec, wrapped as the run requires (for example by DDP).
            inputs: A batch with `pixel_values` `(B, 3, S, S)` in [-1, 1].
            return_outputs: Whether to return the codec's outputs as well.
            num_items_in_batch: Not used, because all losses are means.

        Returns:
            The scalar loss, or the tuple of the loss and the codec's outputs.
        """
        pixel_values = inputs["pixel_values"]
        if self.teacher is None:
            output = model(pixel_values)
            losses = {"codebook": self.args.codebook_weight * (output.codebook_loss + output.commitment_loss)}
            if model.training:
                self.restart_unused_codes(model, pixel_values, output)
        else:
            ids = self.teacher(pixel_values)
            output = model(pixel_values, image_ids=ids)
            codebook = self.accelerator.unwrap_model(model).quantize.codebook(pixel_values.device)
            cosines = output.latents.flatten(0, 1) @ codebook.T
            losses = {"codes": F.cross_entropy(cosines / self.temperature, ids.flatten())}
        reconstruction = output.pixel_values
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

    def forget_losses(self) -> None:
        """Reset the losses and the use of the codes that the trainer has added up."""
        self.sums = {}
        self.usage.zero_()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log `logs` together with the mean of each of the codec's losses since the last log."""
        if batches := self.sums.pop("batches", 0.0):
            logs = logs | {f"{name}_loss": round(value / batches, 6) for name, value in self.sums.items()}
            self.sums = {}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def restart_unused_codes(self, model: nn.Module, pixel_values: torch.Tensor, output: JanusProVQOutput) -> None:
        """Count which codes a micro-batch uses and, if a restart is due, give new vectors to the unused codes.

        The new vectors are the encoder's outputs at the positions of the micro-batch that are reconstructed worst, so
        that the codes are the nearest ones there. A restart is due every `restart_every` steps in the first part
        (`restart_until`) of the training.

        Args:
            model: The codec, wrapped as the run requires (for example by DDP); its codebook is changed in place.
            pixel_values: The images of the micro-batch, `(B, 3, S, S)`.
            output: The codec's outputs for these images.
        """
        assert output.image_ids is not None
        assert output.latents is not None
        assert output.pixel_values is not None
        every, step = self.args.restart_every, self.state.global_step
        self.usage += output.image_ids.flatten().bincount(minlength=len(self.usage)).cpu()
        # Codes restart at most once per step, after its last micro-batch: a single one leaves many codes unused.
        if not self.accelerator.sync_gradients or not every or (step + 1) % every:
            return
        # Codes restart only early in training. Later, restarts would split what is frequent, such as a plain
        # background, into many equivalent codes.
        if step >= self.args.restart_until * self.state.max_steps:
            return
        codec = self.accelerator.unwrap_model(model)
        unused = (self.accelerator.reduce(self.usage.to(pixel_values.device)) == 0).nonzero().squeeze(-1)
        grid = codec.config.num_patches
        error = F.adaptive_avg_pool2d((output.pixel_values - pixel_values).square().mean(dim=1, keepdim=True), grid)
        worst = error.flatten().topk(min(len(unused), error.numel())).indices
        table = codec.quantize.embedding.weight
        table[unused[: len(worst)]] = output.latents.flatten(0, 1)[worst].to(table)
        # Ranks have different images and so different worst positions. All ranks use the codebook of the first rank.
        broadcast(table.data)
        self.usage.zero_()


__all__ = ["CodecTrainer", "CodecTrainingArguments", "PatchTeacher", "initialise_codebook", "kmeans"]
