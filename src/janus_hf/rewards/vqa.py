"""Who answers questions about pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .image_io import as_rgb
from .loading import Pretrained, group_indices
from .rewards import Images, read_column


_INSTRUCTION = "Answer yes or no."


def plain_answer(text: str) -> str:
    """Lower case, without outer white space and a final full stop: "Yes." -> "yes"."""
    return text.strip().removesuffix(".").strip().lower()


class TransformersVqaJudge:
    """A question answerer of transformers: a BLIP (`Salesforce/blip-vqa-base`), or a chat model that sees.

    Its scores are not comparable with mPLUG's.

    Args:
        model: A repository or folder, or a loaded model together with `processor`.
        processor: The model's.
        name: Labels the metrics. Default: the last part of the model's name.
        device, dtype: Of a model that is loaded here. Default: the CPU, the checkpoint's type.
        batch_size: Questions at a time. The answers do not depend on it.
        max_new_tokens: Upper bound on an answer's length.
    """

    def __init__(
        self,
        model: Any = "Salesforce/blip-vqa-base",
        processor: Any = None,
        *,
        name: str | None = None,
        device: Any = "cpu",
        dtype: Any = "auto",
        batch_size: int = 16,
        max_new_tokens: int = 10,
    ) -> None:
        if isinstance(model, (str, os.PathLike)):
            model, processor = _load(model, processor, device, dtype)
        elif processor is None:
            raise ValueError("Expected the loaded model's processor beside it; got none. Pass processor=.")
        self.model, self.processor = model.eval(), processor
        self.source = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
        self.name = name or Path(getattr(model.config, "_name_or_path", "") or type(model).__name__).name
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    @torch.no_grad()
    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """One answer per question, in lower case and without a full stop."""
        answers = [""] * len(questions)
        for places in group_indices(map(self._length, questions)).values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                for place, text in zip(batch, self._batch(image, [questions[i] for i in batch]), strict=True):
                    answers[place] = text
        return answers

    @property
    def _is_chat(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _length(self, question: str) -> int:
        """Questions of one length share a batch: BLIP in transformers 5.23 attends to padding. Chats may be padded, so
        all count as equally long.
        """
        return 0 if self._is_chat else len(self.processor.tokenizer(question)["input_ids"])

    def _batch(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        inputs = self._chat(image, questions) if self._is_chat else self._plain(image, questions)
        inputs = inputs.to(self.model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        if self._is_chat:
            output = output[:, inputs["input_ids"].shape[1] :]
        return [plain_answer(text) for text in self.processor.batch_decode(output, skip_special_tokens=True)]

    def _plain(self, image: Image.Image, questions: Sequence[str]) -> Any:
        return self.processor(images=[image] * len(questions), text=list(questions), return_tensors="pt")

    def _chat(self, image: Image.Image, questions: Sequence[str]) -> Any:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": f"{question} {_INSTRUCTION}"},
                    ],
                }
            ]
            for question in questions
        ]
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )


def _load(name: Any, processor: Any, device: Any, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BlipForQuestionAnswering

    is_blip = AutoConfig.from_pretrained(name).model_type == "blip"
    loader = BlipForQuestionAnswering if is_blip else AutoModelForImageTextToText
    return loader.from_pretrained(name, dtype=dtype).to(device), processor or AutoProcessor.from_pretrained(name)


class VQAReward(Pretrained):
    """What a model for visual question answering says to yes-or-no questions about a picture.

    Column `questions`: a question, or a list of them, per picture ("a red apple?", "is the dog left of the chair?").
    The reward is the mean over a picture's questions of P(yes) / (P(yes) + P(no)), the probabilities being those of
    the answer's first token. T2I-R1 rewards attributes so.

    Args:
        model: Name, folder or model: `GitForCausalLM` (T2I-R1's choice) or `BlipForQuestionAnswering`.
        processor: Its processor.
        hard: Give the share of questions for which "yes" is more probable than "no" instead.
        device, dtype, batch_size: As for `Pretrained`; a batch holds so many questions.

    Raises:
        ValueError: If the model is of another kind, or its tokenizer spells "yes" or "no" in several tokens.
    """

    __name__ = "vqa"

    def __init__(
        self,
        model: Any = "microsoft/git-large-vqav2",
        processor: Any = None,
        *,
        hard: bool = False,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor, batch_size=batch_size, **settings)
        self.hard = hard

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`. Numbers in [0, 1].

        Raises:
            ValueError: Also if a picture has no question.
        """
        asked = [
            [value] if isinstance(value, str) else list(value)
            for value in read_column(self, columns, "questions", images, prompts)
        ]
        if not all(asked):
            raise ValueError(f"Picture {asked.index([])} has no question: every picture needs one at least.")
        pictures = [as_rgb(image) for image in images]
        pairs = [(picture, question) for picture, own in zip(pictures, asked, strict=True) for question in own]
        answers = iter(self.probabilities([picture for picture, _ in pairs], [question for _, question in pairs]))
        rewards = []
        for own in asked:
            given = [next(answers) for _ in own]
            rewards.append(sum(answer > 0.5 if self.hard else answer for answer in given) / len(given))
        return rewards

    @torch.no_grad()
    def probabilities(self, images: Images, questions: Sequence[str]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of one question per picture (RGB)."""
        words = torch.tensor([self._token("yes"), self._token("no")])
        first_token_logits = {"blip": self._blip, "git": self._git}[self._kind(self.model.config)]
        # Questions of one length at a time, without padding: BLIP in transformers 5.23 attends to it.
        ids = [self.processor.tokenizer(question)["input_ids"] for question in questions]
        probabilities = torch.zeros(len(questions))
        for indices in group_indices(map(len, ids)).values():
            for batch in self._batches(len(indices)):
                chosen = indices[batch]
                inputs = self.processor.image_processor(
                    images=[images[index] for index in chosen], return_tensors="pt"
                )
                text = torch.tensor([ids[index] for index in chosen], device=self.model.device)
                logits = first_token_logits(self._place(inputs["pixel_values"]), text)
                probabilities[chosen] = logits.float().cpu()[:, words].softmax(dim=-1)[:, 0]
        return probabilities.tolist()

    def _load(self, name: str | os.PathLike[str], dtype: torch.dtype) -> Any:
        import transformers

        kind = self._kind(transformers.AutoConfig.from_pretrained(name))
        kinds = {"blip": transformers.BlipForQuestionAnswering, "git": transformers.GitForCausalLM}
        return kinds[kind].from_pretrained(name, dtype=dtype)

    @staticmethod
    def _kind(config: Any) -> str:
        if config.model_type not in ("blip", "git"):
            raise ValueError(f"VQAReward asks models of type 'git' or 'blip', got {config.model_type!r}.")
        return str(config.model_type)

    def _token(self, word: str) -> int:
        ids = self.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.processor.tokenizer.unk_token_id:
            raise ValueError(
                f"The tokenizer must know {word!r} as one token, got {ids}: this model cannot be asked so."
            )
        return int(ids[0])

    def _git(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """GIT continues "[CLS] question": its answer takes the place of [SEP]."""
        return self.model(input_ids=input_ids[:, :-1], pixel_values=pixel_values).logits[:, -1]

    def _blip(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """BLIP reads the question while looking at the picture, then answers from what it has read. Its own `forward`
        does not give the answer's logits.
        """
        seen = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        read = self.model.text_encoder(input_ids=input_ids, encoder_hidden_states=seen)[0]
        start = torch.full((len(read), 1), self.model.config.text_config.bos_token_id, device=read.device)
        return self.model.text_decoder(input_ids=start, encoder_hidden_states=read).logits[:, -1]


__all__ = ["TransformersVqaJudge", "VQAReward", "plain_answer"]
