"""Tiny stand-ins of the public checkpoints from which a Janus-Pro is assembled, in every layout that is read.

They hold the weights of the tiny checkpoint of the goldens, which the original code wrote, so that the assembled model
must have these values. Where transformers has the public checkpoint's class, the class names the weights.
"""

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel
from transformers.modeling_utils import load_state_dict


LANGUAGE, TOWER, CODEC = "language_model.", "vision_model.vision_tower.", "gen_vision_model."
JANUS_TOKENS = ("<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>")
Weights = dict[str, torch.Tensor]


def read_golden(checkpoint: Path) -> Weights:
    """Return the weights of the golden checkpoint by their original names."""
    return {k: v for shard in sorted(checkpoint.glob("*.bin")) for k, v in load_state_dict(shard).items()}


def cut(weights: Mapping[str, torch.Tensor], prefix: str, new: str = "") -> Weights:
    """Return the weights whose names begin with `prefix`, with `new` in its place."""
    return {new + name.removeprefix(prefix): w.clone() for name, w in weights.items() if name.startswith(prefix)}


def write(folder: Path, weights: Weights, config: Mapping[str, Any] | None = None, name: str = "model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(weights, folder / name, metadata={"format": "pt"})
    else:
        torch.save(weights, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def llama_config(golden_config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a DeepSeek-LLM checkpoint with the sizes of the golden language model."""
    language = {k: v for k, v in golden_config["language_config"].items() if k != "torch_dtype"}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", **language}


def deepseek_vl_config(golden_config: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("language_config", "vision_config", "aligner_config", "model_type")
    return {"architectures": ["MultiModalityCausalLM"], **{name: golden_config[name] for name in kept}}


def write_tokenizer(folder: Path, checkpoint: Path, *, lacking: tuple[str, ...] = ()) -> None:
    """Copy the golden tokenizer without some of its last tokens, as DeepSeek-LLM's lacks those of Janus."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(checkpoint / name, folder / name)
    if lacking:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        first = min(token["id"] for token in content["added_tokens"] if token["content"] in lacking)
        content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < first]
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        named = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
        config = {**named, "pad_token": named["eos_token"], "tokenizer_class": "LlamaTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")


def siglip_names(tower: Weights) -> Weights:
    """Return the weights of timm's tower by the names of `SiglipVisionModel`, without the pooling head."""
    renamed: Weights = {}
    for name, tensor in tower.items():
        if name.startswith("attn_pool."):
            continue
        if name == "pos_embed":
            renamed["embeddings.position_embedding.weight"] = tensor[0].clone()
        elif ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                new = name.replace("blocks.", "encoder.layers.").replace("attn.qkv", f"self_attn.{letter}_proj")
                renamed[new] = part.clone()
        else:
            for old, new in (
                (r"^patch_embed\.proj", "embeddings.patch_embedding"),
                (r"^blocks\.", "encoder.layers."),
                (r"\.attn\.proj\.", ".self_attn.out_proj."),
                (r"\.norm(\d)\.", r".layer_norm\1."),
                (r"^norm\.", "post_layernorm."),
            ):
                name = re.sub(old, new, name)
            renamed[name] = tensor
    return renamed


def siglip_config(golden_config: Mapping[str, Any], tower: Weights) -> dict[str, Any]:
    params = golden_config["vision_config"]["params"]
    width, _, patch, _ = tower["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "patch_size": patch,
        "image_size": params["image_size"],
        "intermediate_size": tower["blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in tower if name.startswith("blocks.")),
        "num_attention_heads": params["heads"],
        "hidden_act": "gelu",
    }


class StandIns:
    """Writer of stand-ins; every method writes one below `folder` and returns its path."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.golden = read_golden(checkpoint)
        self.config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.tower = cut(self.golden, TOWER)
        self.codec = cut(self.golden, CODEC)
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        self.siglip_text = {**text, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}

    def _new(self, name: str) -> Path:
        return self.folder / name

    # Language models

    def llama(self, name: str = "llama", *, lacking: tuple[str, ...] = JANUS_TOKENS, **changes: Any) -> Path:
        weights = cut(self.golden, LANGUAGE)
        folder = write(self._new(name), weights, llama_config(self.config) | changes)
        write_tokenizer(folder, self.checkpoint, lacking=lacking)
        return folder

    def llama_bin_shards(self) -> Path:
        """Pickled shards with an index, and a constant that old versions of transformers stored."""
        weights = cut(self.golden, LANGUAGE)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        names = sorted(weights)
        folder, index = self._new("llama-bin"), {}
        for number, part in enumerate((names[::2], names[1::2]), 1):
            shard = f"pytorch_model-0000{number}-of-00002.bin"
            write(folder, {one: weights[one] for one in part}, llama_config(self.config), name=shard)
            index |= dict.fromkeys(part, shard)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
        write_tokenizer(folder, self.checkpoint, lacking=JANUS_TOKENS)
        return folder

    def deepseek_vl(self) -> Path:
        """A language model, a tower and an aligner, as in deepseek-vl-1.3b."""
        kept = (LANGUAGE, "vision_model.", "aligner.")
        weights = {name: tensor for name, tensor in self.golden.items() if name.startswith(kept)}
        folder = write(self._new("deepseek-vl"), weights, deepseek_vl_config(self.config))
        write_tokenizer(folder, self.checkpoint)
        return folder

    def janus(self) -> Path:
        return self.checkpoint

    # Vision towers

    def siglip(self) -> Path:
        """`SiglipModel` with its text tower and pooling head, written by transformers."""
        vision = siglip_config(self.config, self.tower)
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=self.siglip_text)).bfloat16()
        model.vision_model.load_state_dict(siglip_names(self.tower), strict=False)
        model.save_pretrained(self._new("siglip"))
        return self._new("siglip")

    def siglip_vision(self) -> Path:
        model = SiglipVisionModel(SiglipVisionConfig(**siglip_config(self.config, self.tower))).bfloat16()
        model.load_state_dict(siglip_names(self.tower), strict=False)
        model.save_pretrained(self._new("siglip-vision"))
        return self._new("siglip-vision")

    def timm(self) -> Path:
        heads = self.config["vision_config"]["params"]["heads"]
        config = {"architecture": "vit_tiny_siglip", "num_classes": 0, "model_args": {"num_heads": heads}}
        return write(self._new("timm"), dict(self.tower), config)

    def open_clip(self) -> Path:
        weights = {f"visual.trunk.{name}": tensor for name, tensor in self.tower.items()}
        weights["text.token_embedding.weight"] = torch.ones(3, 4)
        weights |= {"logit_scale": torch.ones(()), "logit_bias": torch.ones(())}
        heads = self.config["vision_config"]["params"]["heads"]
        return write(self._new("open-clip"), weights, {"num_attention_heads": heads}, "open_clip_pytorch_model.bin")

    # Codecs

    def llamagen(self, name: str = "vq_ds16_c2i.pt") -> Path:
        """LlamaGen's released file: the state dict under "model", in float32."""
        folder = self._new("llamagen")
        folder.mkdir(exist_ok=True)
        torch.save({"model": self._codec_in_float32()}, folder / name)
        return folder / name

    def llamagen_training(self) -> Path:
        """A checkpoint of LlamaGen's training, whose averaged weights are to be taken."""
        folder = self._new("llamagen-training")
        folder.mkdir(exist_ok=True)
        weights = self._codec_in_float32()
        worse = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        beside = {"optimizer": {"state": {}}, "discriminator": {}, "optimizer_disc": {}, "steps": 3}
        arguments = argparse.Namespace(vq_model="VQ-16", lr=1e-4)
        torch.save({"model": worse, "ema": weights, "args": arguments, **beside}, folder / "0000003.pt")
        return folder

    def llamagen_bare(self) -> Path:
        folder = self._new("llamagen-bare")
        folder.mkdir(exist_ok=True)
        weights = self._codec_in_float32()
        torch.save(weights, folder / "vq.pth", _use_new_zipfile_serialization=False)  # cannot be mapped into memory
        return folder / "vq.pth"

    def llamagen_safetensors(self) -> Path:
        return write(self._new("llamagen-safetensors"), self._codec_in_float32(), {"codebook_size": 64})

    def _codec_in_float32(self) -> Weights:
        weights = {name: tensor.float() for name, tensor in self.codec.items()}
        if "quantize.codebook_used" in weights:
            weights["quantize.codebook_used"] = torch.nn.Parameter(weights["quantize.codebook_used"])  # as LlamaGen
        return weights


LANGUAGE_MODELS = ("llama", "llama_bin_shards", "deepseek_vl", "janus")
VISION_TOWERS = ("siglip", "siglip_vision", "timm", "open_clip", "deepseek_vl", "janus")
CODECS = ("llamagen", "llamagen_training", "llamagen_bare", "llamagen_safetensors", "janus")
