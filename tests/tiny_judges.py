"""What tests of rewards and judges share: tiny random models with their processors, and images of noise.

The models are built from configurations, so nothing is downloaded.
"""

import string
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)


SIDE = 16  # pixels per side of the images that CLIP, BLIP and GIT read
WORDS = ["cat", "dog", "hot", "apple", "red", "blue", "a", "is", "the", "there", "?", "left", "of", "yes", "no"]
# transformers' GroundingDINO has the ids of BERT's vocabulary for [CLS], [SEP], "." and "?" built in.
FIXED = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
VOCABULARY_SIZE = 1100


def noise(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    """Return an RGB image of smooth random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def swin(stages: list[str]) -> SwinConfig:
    """Return the configuration of a Swin backbone that returns the features of the stages."""
    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=stages
    )


def build(model_class, config, seed: int = 0):
    """Return a model with random weights in evaluation mode."""
    torch.manual_seed(seed)
    return model_class(config).eval()


def mask2former(num_labels: int = 80) -> Mask2FormerForUniversalSegmentation:
    """Return a Mask2Former with ten queries."""
    config = Mask2FormerConfig(
        backbone_config=swin(["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=10,
        num_labels=num_labels,
    )
    return build(Mask2FormerForUniversalSegmentation, config)


def clip() -> tuple[CLIPModel, CLIPProcessor]:
    """Return a CLIP that reads 48 tokens, one per letter."""
    tokens = [*string.ascii_lowercase, *string.punctuation, *string.digits]
    tokens = ["<|startoftext|>", "<|endoftext|>", *tokens, *(f"{token}</w>" for token in tokens)]
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "max_position_embeddings": 48, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config=text, vision_config=tower | {"image_size": SIDE, "patch_size": 8}, projection_dim=12
    )
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        CLIPTokenizer({token: index for index, token in enumerate(tokens)}, []),
    )
    return build(CLIPModel, config), processor


def bert_tokenizer() -> BertTokenizer:
    """Return a tokenizer that has `WORDS` as tokens and the fixed ids that GroundingDINO needs."""
    words = [word for word in WORDS if word not in FIXED]
    taken = FIXED | {word: 200 + index for index, word in enumerate(words)}
    used = set(taken.values())
    filler = {f"[unused{index}]": index for index in range(VOCABULARY_SIZE) if index not in used}
    return BertTokenizer(taken | filler)


def blip() -> tuple[BlipForQuestionAnswering, BlipProcessor]:
    """Return a BLIP for visual question answering."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"encoder_hidden_size": 16, "vocab_size": VOCABULARY_SIZE, "bos_token_id": 101}
    config = BlipConfig(
        text_config=text | {"max_position_embeddings": 32},
        vision_config=tower | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.5},
    )
    image_processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return build(BlipForQuestionAnswering, config), BlipProcessor(image_processor, bert_tokenizer())


def git() -> tuple[GitForCausalLM, GitProcessor]:
    """Return a GIT, which answers questions as a continuation of the text."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GitConfig(
        vision_config=tower | {"image_size": SIDE, "patch_size": 8},
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=32,
        **tower,
    )
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return build(GitForCausalLM, config), GitProcessor(image_processor, bert_tokenizer())


def grounding_dino() -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """Return a GroundingDINO with ten queries that reads 16 tokens."""
    config = GroundingDinoConfig(
        backbone_config=swin(["stage2", "stage3", "stage4"]),
        text_config={
            "model_type": "bert",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        max_text_len=16,
    )
    image_processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 192})
    return (
        build(GroundingDinoForObjectDetection, config),
        GroundingDinoProcessor(image_processor, bert_tokenizer()),
    )


def write_modelscope(folder: Path) -> Path:
    """Write a package that stands for modelscope and return the folder to import it from.

    Its model answers "yes" about images of 3 x 2 pixels and "no" about others, raises on the question "fail?" and ends
    the process on "die?". It prints to standard output, which the real one does as well.
    """
    package = folder / "elsewhere" / "modelscope"
    (package / "utils").mkdir(parents=True)
    for path in (package / "__init__.py", package / "utils" / "__init__.py"):
        path.touch()
    (package / "utils" / "constant.py").write_text("class Tasks:\n    visual_question_answering = 'vqa'\n")
    code = """
        def pipeline(task, model, device):
            assert task == "vqa" and device.split(":")[0] in ("cpu", "gpu") and model.startswith("damo/mplug")
            print("loading ...")
            def answer(request):
                print("asked")
                if request["question"] == "die?":
                    raise SystemExit(3)
                if request["question"] == "fail?":
                    raise KeyError("oh")
                return {"text": "yes" if request["image"].size == (3, 2) else "no"}
            return answer
        """
    (package / "pipelines.py").write_text(textwrap.dedent(code))
    return package.parent
