"""Visual question answering with transformers models: a reward and a judge that ask questions about images.

`VQAReward` scores an image by the probability that the answer begins with "yes". `TransformersVqaJudge` generates the
text of the answers to DPG-Bench's questions. DPG-Bench's official judge is in `mplug`.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel

from ..answering import answer
from .image_io import as_rgb
from .loading import ModelSource, Pretrained, ProcessorSource, group_indices
from .rewards import Images, read_column


INSTRUCTION = "Answer yes or no."  # appended to every question that a chat model receives


class QuestionAnswerer(Pretrained):
    """Base class of transformers models that answer questions about images: BLIP, GIT or vision-language chat models.

    The arguments are those of its base class `Pretrained`.
    """

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype | str) -> PreTrainedModel:
        """Load and return the model `name`, a name on the Hub or a folder."""
        from transformers import AutoConfig, AutoModelForImageTextToText, BlipForQuestionAnswering

        # For BLIP, the Auto class would load the captioning model.
        is_blip = AutoConfig.from_pretrained(name).model_type == "blip"
        model_class = BlipForQuestionAnswering if is_blip else AutoModelForImageTextToText
        return model_class.from_pretrained(name, dtype=dtype)

    def _unpadded_batches(self, images: Images, questions: Sequence[str]) -> Iterator[tuple[list[int], BatchFeature]]:
        """Yield the inputs of the model in batches of questions with the same number of tokens, which need no padding.

        BLIP in transformers 5.23 attends to padding, so padded questions would get answers that depend on the batch.

        Args:
            images: RGB images, one per question.
            questions: The questions, without a chat template.

        Yields:
            Indices in `questions` of a batch's questions, and the model's inputs for them on the model's device.
        """
        lengths = [len(self.processor.tokenizer(question)["input_ids"]) for question in questions]
        for indices in group_indices(lengths).values():
            for batch in self._batches(len(indices)):
                chosen = indices[batch]
                inputs = self.processor(
                    images=[images[index] for index in chosen],
                    text=[questions[index] for index in chosen],
                    return_tensors="pt",
                )
                yield chosen, inputs.to(self.model.device, self.model.dtype)


class VQAReward(QuestionAnswerer):
    """Reward that is the probability that a visual question answering model says "yes" to questions about an image.

    It reads the column `questions` of the data set: one question, or a list of questions, per image ("a red apple?",
    "is the dog left of the chair?"). The reward of an image is the mean of P(yes) / (P(yes) + P(no)) over its
    questions, where P is the probability of the answer's first token. T2I-R1 computes its reward for attributes
    in this way.

    Args:
        model: Name on the Hub, folder, or loaded model: `GitForCausalLM` (used by T2I-R1) or
            `BlipForQuestionAnswering`.
        processor: The model's processor; by default the one saved under the model's name.
        hard: Return instead the share of an image's questions for which "yes" is more probable than "no".
        batch_size: Number of questions per forward pass.
        settings: `device` and `dtype` of the model; see `Pretrained`.

    Raises:
        ValueError: When the reward is called, if the model is neither GIT nor BLIP, or if its tokenizer splits "yes"
            or "no" into several tokens.
    """

    __name__ = "vqa"

    def __init__(
        self,
        model: ModelSource = "microsoft/git-large-vqav2",
        processor: ProcessorSource = None,
        *,
        hard: bool = False,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, batch_size=batch_size, **settings)
        self.hard = hard

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Return the reward in [0, 1] of each image; see `Reward`. The prompts are not read.

        Raises:
            ValueError: If an image has no question, or for the reasons given in `Reward` and `VQAReward`.
        """
        questions = [
            [value] if isinstance(value, str) else list(value)
            for value in read_column(self, columns, "questions", images, prompts)
        ]
        if not all(questions):
            raise ValueError(
                f"`questions` must have at least one question per image, got none for image {questions.index([])}: "
                "ask something about every image."
            )
        pairs = [
            (image, question) for image, own in zip(map(as_rgb, images), questions, strict=True) for question in own
        ]
        answers = iter(self.probabilities([image for image, _ in pairs], [question for _, question in pairs]))
        rewards = []
        for own in questions:
            given = [next(answers) for _ in own]
            rewards.append(sum(p > 0.5 if self.hard else p for p in given) / len(given))
        return rewards

    @torch.no_grad()
    def probabilities(self, images: Images, questions: Sequence[str]) -> list[float]:
        """Return P(yes) / (P(yes) + P(no)) for each pair of an image and a question about it.

        P is the probability that the model gives the word as the first token of its answer.

        Args:
            images: RGB images.
            questions: One question per image.

        Raises:
            ValueError: If the model is neither GIT nor BLIP, or if its tokenizer splits "yes" or "no" into several
                tokens.
        """
        words = torch.tensor([self._token("yes"), self._token("no")])
        first_token_logits = self._git if _model_type(self.model.config) == "git" else self._blip
        probabilities = torch.zeros(len(questions))
        for indices, inputs in self._unpadded_batches(images, questions):
            logits = first_token_logits(inputs["pixel_values"], inputs["input_ids"])
            probabilities[indices] = logits.float().cpu()[:, words].softmax(dim=-1)[:, 0]
        return probabilities.tolist()

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype | str) -> PreTrainedModel:
        """Load and return the model `name`; raise ValueError if it is neither GIT nor BLIP."""
        from transformers import AutoConfig

        _model_type(AutoConfig.from_pretrained(name))  # refuse other models before their weights are downloaded
        return super()._load(name, dtype)

    def _token(self, word: str) -> int:
        """Return the id of the single token of a word; raise ValueError if the tokenizer has no such token."""
        ids = self.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.processor.tokenizer.unk_token_id:
            raise ValueError(
                f"The tokenizer must have {word!r} as one token, got {ids}: choose a model whose tokenizer does."
            )
        return int(ids[0])

    def _git(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return GIT's logits `(B, V)` over its V tokens for the first token of each answer.

        GIT generates the answer as the continuation of "[CLS] question", so the [SEP] that the tokenizer appends is
        dropped.

        Args:
            pixel_values: Images `(B, 3, H, W)`.
            input_ids: Questions `(B, T)`.
        """
        return self.model(input_ids=input_ids[:, :-1], pixel_values=pixel_values).logits[:, -1]

    def _blip(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return BLIP's logits `(B, V)` over its V tokens for the first token of each answer.

        BLIP's own `forward` does not return them, so its vision model, text encoder and text decoder are called here.

        Args:
            pixel_values: Images `(B, 3, H, W)`.
            input_ids: Questions `(B, T)`.
        """
        seen = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        read = self.model.text_encoder(input_ids=input_ids, encoder_hidden_states=seen)[0]
        start = torch.full((len(read), 1), self.model.config.text_config.bos_token_id, device=read.device)
        return self.model.text_decoder(input_ids=start, encoder_hidden_states=read).logits[:, -1]


class TransformersVqaJudge(QuestionAnswerer):
    """Judge for DPG-Bench that answers its questions with a transformers model: BLIP or a vision-language chat model.

    Its scores are not comparable with those of mPLUG, the official judge.

    Args:
        model: Name on the Hub or folder, or a loaded model together with its `processor`.
        processor: The model's processor; by default the one saved under the model's name.
        name: Name of the judge in the metrics; by default the last part of the model's name.
        device: Device of a model given by name; a loaded model stays where it is.
        dtype: Dtype of a model given by name; by default that of the checkpoint. A loaded model keeps its own.
        batch_size: Number of questions per batch. The answers do not depend on it.
        max_new_tokens: Upper bound on the number of tokens of an answer.

    Raises:
        ValueError: If a loaded model is given without its processor.
    """

    def __init__(
        self,
        model: ModelSource = "Salesforce/blip-vqa-base",
        processor: ProcessorSource = None,
        *,
        name: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = "auto",
        batch_size: int = 16,
        max_new_tokens: int = 10,
    ) -> None:
        named = isinstance(model, str | os.PathLike)
        super().__init__(
            model,
            processor,
            device=device if named else None,
            dtype=dtype if named else None,
            batch_size=batch_size,
        )
        self.name = name or Path(self.source).name
        self.max_new_tokens = max_new_tokens
        # Load now and not at the first question: an evaluation generates its images before that, and a wrong name must
        # fail before this work.
        self.load()

    @torch.no_grad()
    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """Return the answer to each question about the image, in lower case and without a final full stop."""
        if getattr(self.processor, "chat_template", None):
            return [plain_answer(text) for text in self._chat(image, questions)]
        answers = [""] * len(questions)
        for indices, inputs in self._unpadded_batches([image] * len(questions), questions):
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
            # BLIP's output contains only the answer, unlike that of a chat model, which begins with the prompt.
            texts = self.processor.batch_decode(output, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = plain_answer(text)
        return answers

    def _chat(self, image: Image.Image, questions: Sequence[str]) -> Iterator[str]:
        """Yield a chat model's answer to each question about the image.

        Every question is asked in a conversation of its own and followed by `INSTRUCTION`.
        """
        for batch in self._batches(len(questions)):
            conversations = [
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": image},
                            {"type": "text", "text": f"{question} {INSTRUCTION}"},
                        ],
                    }
                ]
                for question in questions[batch]
            ]
            yield from answer(
                self.model,
                self.processor,
                conversations,
                max_new_tokens=self.max_new_tokens,
                dtype=self.model.dtype,
            )


def plain_answer(text: str) -> str:
    """Return an answer in lower case, without surrounding white space and final full stop: "Yes." becomes "yes"."""
    return text.strip().removesuffix(".").strip().lower()


def _model_type(config: PreTrainedConfig) -> str:
    """Return the model type that a configuration names, "git" or "blip"; raise ValueError if it is any other."""
    if config.model_type not in ("blip", "git"):
        raise ValueError(
            f"`model` of VQAReward must be of type 'git' or 'blip', got {config.model_type!r}: choose such a model, "
            "for example microsoft/git-large-vqav2."
        )
    return str(config.model_type)


__all__ = ["INSTRUCTION", "QuestionAnswerer", "TransformersVqaJudge", "VQAReward", "plain_answer"]
