"""Tiny random judges with their processors, built from configurations: nothing is downloaded."""

import string

import torch
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


SIDE = 16  # of the pictures that CLIP, BLIP and GIT see
WORDS = ["cat", "dog", "hot", "apple", "red", "blue", "a", "is", "the", "there", "?", "left", "of", "yes", "no"]
# GroundingDINO has the ids of BERT's vocabulary for [CLS], [SEP], "." and "?" built in.
FIXED = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
VOCABULARY_SIZE = 1100


def swin(stages: list[str]) -> SwinConfig:
    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=stages
    )


def build(model_class, config, seed: int = 0):
    torch.manual_seed(seed)
    return model_class(config).eval()


def mask2former(num_labels: int = 80) -> Mask2FormerForUniversalSegmentation:
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
    words = [word for word in WORDS if word not in FIXED]
    taken = FIXED | {word: 200 + index for index, word in enumerate(words)}
    used = set(taken.values())
    filler = {f"[unused{index}]": index for index in range(VOCABULARY_SIZE) if index not in used}
    return BertTokenizer(taken | filler)


def blip() -> tuple[BlipForQuestionAnswering, BlipProcessor]:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"encoder_hidden_size": 16, "vocab_size": VOCABULARY_SIZE, "bos_token_id": 101}
    config = BlipConfig(
        text_config=text | {"max_position_embeddings": 32},
        vision_config=tower | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.5},
    )
    image_processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return build(BlipForQuestionAnswering, config), BlipProcessor(image_processor, bert_tokenizer())


def git() -> tuple[GitForCausalLM, GitProcessor]:
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
