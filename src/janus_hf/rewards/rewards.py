"""How good a drawn picture is, as a number: scorers for evaluation and rewards for training.

Each is a callable `reward(images, prompts, **columns) -> list[float]`: a number per picture, the more the better.
`columns` are further columns of the data set, a value per picture; a reward takes what it needs and ignores the rest.
Every one has a `__name__`, under which trainers log it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from PIL import Image

from .clip import Clip
from .detectors import Detector, ShapesDetector
from .geneval_rules import Detection, Rules, score
from .grounding_dino import GroundingDinoDetector
from .image_io import as_rgb
from .loading import Pretrained, alike
from .mask2former import Mask2FormerDetector


Images = Sequence[Image.Image]


class Reward(Protocol):
    """What every class of this module is."""

    __name__: str

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """A number per picture.

        Args:
            images: PIL pictures.
            prompts: What each was drawn from.
            columns: Further columns, a value per picture.

        Raises:
            ValueError: If a column is missing or of another length than `images`.
        """
        ...


# By GenEval's rules


class GenEvalReward:
    """Whether a picture obeys its prompt by GenEval's rules: 1 or 0.

    Column `metadata`: a line of GenEval's `evaluation_metadata.jsonl` per picture, as a dict or as JSON. Fields that
    are None count as absent, since tables of Arrow cannot leave them out.

    Args:
        detector: Finds the things; by default GenEval's.
        partial: Give the share of `include` and `exclude` clauses that hold instead, in [0, 1].
        rules: Thresholds other than the official ones.
    """

    __name__ = "geneval"

    def __init__(self, detector: Detector | None = None, *, partial: bool = False, rules: Rules | None = None) -> None:
        self.detector = detector or Mask2FormerDetector()
        self.partial, self.rules = partial, rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`."""
        lines = [as_metadata(value) for value in _column(self, columns, "metadata", images, prompts)]
        found = self.detector.detect(images, lines)
        return [self._judge(things, line) for things, line in zip(found, lines, strict=True)]

    def _judge(self, detections: list[Detection], metadata: Mapping[str, Any]) -> float:
        verdict = score(detections, metadata, self.rules)
        if not self.partial:
            return float(verdict.correct)
        # A clause gives one reason at most.
        return 1.0 - len(verdict.reasons) / (len(metadata.get("include", [])) + len(metadata.get("exclude", [])))


class ShapesReward(GenEvalReward):
    """`GenEvalReward` with the small world's exact detector: no model, milliseconds per picture."""

    __name__ = "shapes"

    def __init__(self, *, partial: bool = False) -> None:
        super().__init__(ShapesDetector(), partial=partial)


class PositionReward:
    """Whether things lie as the prompt says, whatever else is wrong: the share of position clauses that hold.

    Column `metadata`, as for `GenEvalReward`. A clause `position: [relation, k]` holds if GenEval's rules find its
    things so related to those of clause k, colours aside.

    Args:
        detector: Finds the things; by default GroundingDINO, as in T2I-R1.
        rules: Thresholds other than the official ones.
    """

    __name__ = "position"

    def __init__(self, detector: Detector | None = None, *, rules: Rules | None = None) -> None:
        self.detector = detector or GroundingDinoDetector()
        self.rules = rules

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`.

        Raises:
            ValueError: Also if metadata have no position clause.
        """
        lines = [as_metadata(value) for value in _column(self, columns, "metadata", images, prompts)]
        pairs = [_related(line) for line in lines]
        found = self.detector.detect(images, [{"include": list(chain(*asked))} for asked in pairs])
        return [
            sum(score(things, {"tag": "position", "include": pair}, self.rules).correct for pair in asked) / len(asked)
            for things, asked in zip(found, pairs, strict=True)
        ]


def _related(metadata: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """For each position clause: what it refers to, then itself; nothing but classes, counts and the relation."""
    include = metadata.get("include", [])
    bare = [{"class": clause["class"], "count": clause["count"]} for clause in include]
    pairs = []
    for clause, subject in zip(include, bare, strict=True):
        if "position" in clause:
            relation, index = clause["position"]
            if not 0 <= index < len(bare):
                raise ValueError(f"The position {clause['position']} refers to none of the {len(bare)} clauses.")
            pairs.append([bare[index], subject | {"position": [relation, 0]}])
    if not pairs:
        raise ValueError(
            f"PositionReward got metadata without a position clause (tag {metadata.get('tag')!r}): use it on prompts "
            "about positions only, or GenEvalReward on all."
        )
    return pairs


# By CLIP


class ClipScore(Clip):
    """CLIPScore in torchmetrics' convention: 100 times the cosine of picture and prompt, negative ones as 0."""

    __name__ = "clip_score"

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`. Numbers in [0, 100]."""
        return [max(100.0 * cosine, 0.0) for cosine in _cosines(self, images, prompts)]


class PickScore(Clip):
    """PickScore (Kirstain et al., arXiv 2305.01569): a CLIP ViT-H/14 trained on what people chose among pictures.

    The published score: the cosine of picture and prompt times the model's own scale (about 100, so good pictures have
    about 20). Some trainers divide it by 26.
    """

    __name__ = "pick_score"

    def __init__(
        self,
        model: Any = "yuvalkirstain/PickScore_v1",
        processor: Any = None,
        *,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        if processor is None and model == "yuvalkirstain/PickScore_v1":
            processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the one it was trained with
        super().__init__(model, processor, batch_size=batch_size, **settings)

    def __call__(self, images: Images, prompts: Sequence[str], **columns: Any) -> list[float]:
        """See `Reward`."""
        scale = self.model.logit_scale.exp().item()
        return [scale * cosine for cosine in _cosines(self, images, prompts)]


def _cosines(clip: Clip, images: Images, prompts: Sequence[str]) -> list[float]:
    _check_lengths(clip, images, prompts)
    if not images:
        return []
    seen = clip.image_features([as_rgb(image) for image in images])
    return (seen * clip.text_features(prompts)).sum(dim=-1).tolist()


# By questions


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
            for value in _column(self, columns, "questions", images, prompts)
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
        for indices in alike(map(len, ids)).values():
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


# Columns


def as_metadata(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """A line of GenEval's metadata from a cell of a table: parsed if it is JSON, and without fields that are None.

    Raises:
        TypeError: If it is neither text nor a mapping.
    """
    line = json.loads(value) if isinstance(value, str) else value
    if not isinstance(line, Mapping):
        raise TypeError(f"Expected metadata as a dict or as JSON of one, got {value!r}.")
    clauses = {
        part: [{key: item for key, item in clause.items() if item is not None} for clause in line[part]]
        for part in ("include", "exclude")
        if line.get(part) is not None
    }
    return {key: item for key, item in line.items() if item is not None} | clauses


def _column(
    reward: Any, columns: Mapping[str, Any], name: str, images: Images, prompts: Sequence[str]
) -> Sequence[Any]:
    _check_lengths(reward, images, prompts)
    if name not in columns:
        raise ValueError(
            f"{type(reward).__name__} needs the column {name!r}, a value per picture; got {sorted(columns) or 'none'}."
        )
    if len(columns[name]) != len(images):
        raise ValueError(f"The column {name!r} has {len(columns[name])} values for {len(images)} pictures.")
    return columns[name]


def _check_lengths(reward: Any, images: Images, prompts: Sequence[str]) -> None:
    if len(images) != len(prompts):
        raise ValueError(f"{type(reward).__name__} got {len(images)} pictures but {len(prompts)} prompts.")


__all__ = [
    "ClipScore",
    "GenEvalReward",
    "PickScore",
    "PositionReward",
    "Reward",
    "ShapesReward",
    "VQAReward",
    "as_metadata",
]
