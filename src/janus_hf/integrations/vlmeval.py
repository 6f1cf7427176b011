"""Class `JanusPro`, which runs Janus-Pro in VLMEvalKit, and a launcher that registers it and starts VLMEvalKit:

    python -m janus_hf.integrations.vlmeval --model JanusPro --data POPE MME MMBench_DEV_EN SEEDBench_IMG

`--pretrained` selects another checkpoint than Janus-Pro-7B, and `--dtype` its dtype; all other arguments are passed to
VLMEvalKit's `run.py`. The prompts are those of VLMEvalKit's own adapter by the authors of Janus-Pro
(vlmeval/vlm/janus.py), which needs the package of deepseek-ai/Janus. This module is written for ms-vlmeval 0.0.20;
VLMEvalKit is published on PyPI under the name ms-vlmeval.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..evaluation.benchmarks import protocol
from . import DEFAULT_CHECKPOINT, load_pipeline
from .paper_style import answer_as_authors, lettered_options


try:
    from vlmeval.dataset import DATASET_TYPE
    from vlmeval.vlm.base import BaseModel
except ImportError as error:
    raise ImportError(
        f"This is a model for VLMEvalKit, which could not be imported: {error}. pip install ms-vlmeval, or see "
        "https://github.com/open-compass/VLMEvalKit."
    ) from error


NAME = "JanusPro"


class JanusPro(BaseModel):
    """Run Janus-Pro as a model of VLMEvalKit, with the prompts with which its authors evaluated it.

    Args:
        model_path: Repository id on the Hub, or folder of the checkpoint.
        dtype: "bfloat16", "float32", ..., or "auto" for the dtype of the checkpoint.
        device: Device of the model; by default a GPU if one is available.
        generate_kwargs: Arguments of `answering.answer` that replace the authors' settings, which are greedy decoding
            and at most 2048 new tokens.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        model_path: str = DEFAULT_CHECKPOINT,
        *,
        dtype: str = "bfloat16",
        device: str | None = None,
        **generate_kwargs: Any,
    ) -> None:
        super().__init__()
        self.model_path, self.generate_kwargs = model_path, generate_kwargs
        self.pipe = load_pipeline(model_path, dtype=dtype, device=device)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        """Return whether the authors of Janus-Pro have a prompt of their own for the data set.

        They have one for every data set of yes-or-no or multiple-choice questions, and for MM-Vet.
        """
        return dataset is not None and (DATASET_TYPE(dataset) in ("Y/N", "MCQ") or dataset == "MMVet")

    def build_prompt(self, line: Any, dataset: str) -> list[dict[str, str]]:
        """Return the prompt of Janus-Pro's authors for a row of a data set: the row's images, then the text.

        Args:
            line: A row of the data set's table.
            dataset: Name of the data set.

        Returns:
            Dicts with the keys `type` ("image" or "text") and `value` (the path of the image, or the text).

        Raises:
            ValueError: If the authors have no prompt for the data set; see `use_custom_prompt`.
        """
        if not self.use_custom_prompt(dataset):
            raise ValueError(
                f"`dataset` must be one that the authors have a prompt for, got {dataset!r}: VLMEvalKit's own is used."
            )
        if dataset == "MMVet":
            prompt = protocol.paper_prompt("mmvet", line["question"])
        elif DATASET_TYPE(dataset) == "Y/N":
            prompt = protocol.yes_no_prompt(line["question"], drop_tail=dataset == "POPE")
        else:
            prompt = protocol.multiple_choice_prompt(line["question"], lettered_options(line), hint=line.get("hint"))
        images = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
        return [*images, {"type": "text", "value": prompt}]

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """Return the answer to one user turn: a list of texts and images in any order, as VLMEvalKit gives them.

        VLMEvalKit's `generate` checks the turn and calls this method.
        """
        return self.chat_inner([{"role": "user", "content": message}], dataset)

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Return the answer to the last turn of a conversation; VLMEvalKit's `chat` calls this method."""
        system_prompt = protocol.MM_VET_SYSTEM_PROMPT if "MMVet" in (dataset or "") else ""
        turns = [self._turn(**turn) for turn in message]
        return answer_as_authors(self.pipe, [turns], system_prompt=system_prompt, **self.generate_kwargs)[0]

    def _turn(self, role: str, content: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Convert one turn of a VLMEvalKit conversation to a chat message for the processor.

        Texts and image placeholders are joined without separators, as in the adapter of Janus-Pro's authors.

        Args:
            role: "user" or "assistant".
            content: Texts and images as dicts with the keys `type` and `value`.

        Returns:
            A dict with the keys `role`, `content` (the joined text) and `images`.
        """
        token = self.pipe.processor.image_token
        text = "".join(token if part["type"] == "image" else part["value"] for part in content)
        return {"role": role, "content": text, "images": [p["value"] for p in content if p["type"] == "image"]}


def register(pretrained: str = DEFAULT_CHECKPOINT, *, dtype: str = "bfloat16") -> str:
    """Add a checkpoint to the models that VLMEvalKit can run.

    Args:
        pretrained: Repository id on the Hub, or folder of the checkpoint.
        dtype: "bfloat16", "float32", ..., or "auto" for the dtype of the checkpoint.

    Returns:
        The name of the model in VLMEvalKit. VLMEvalKit stores and reuses results under this name, so every checkpoint
        has a name of its own; the default checkpoint is called "JanusPro".
    """
    import vlmeval.vlm
    from vlmeval.config import supported_VLM

    path = pretrained.strip("/").replace("/", "--")
    name = NAME if pretrained == DEFAULT_CHECKPOINT else f"{NAME}_{path}"
    vlmeval.vlm.JanusPro = JanusPro  # `--config` files name the class, which VLMEvalKit looks up here
    supported_VLM[name] = partial(JanusPro, model_path=pretrained, dtype=dtype)
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    """Register the checkpoint that the command line names, and run VLMEvalKit on it.

    Args:
        arguments: Arguments of the command line; None uses those of the process.

    Raises:
        ImportError: If the installed VLMEvalKit has no module `vlmeval.run`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m janus_hf.integrations.vlmeval",
        description=f"VLMEvalKit with {NAME}. All other arguments are those of its run.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--pretrained", default=DEFAULT_CHECKPOINT, help="repository id or folder (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="%(default)s, float32, ... or auto")
    own, others = parser.parse_known_args(arguments)
    if NAME not in others and "--config" not in others:
        parser.error(f"expected --model {NAME}, or --config with a file that names the class; got {others}")
    name = register(own.pretrained, dtype=own.dtype)
    try:
        from vlmeval import run
    except ImportError as error:
        raise ImportError(
            "This VLMEvalKit has no module vlmeval.run: pip install ms-vlmeval, or call register() of this module "
            "before running the repository's run.py."
        ) from error
    # VLMEvalKit's run.py reads its arguments from `sys.argv`, so they are replaced while it runs.
    before, sys.argv = sys.argv, ["run.py", *(name if argument == NAME else argument for argument in others)]
    try:
        run.main()
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()


__all__ = ["NAME", "JanusPro", "main", "register"]
