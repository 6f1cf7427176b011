"""What users write, with the types that a checker must infer; `test_typed_script.py` runs mypy and pyright on it.

The file is checked and never run. `assert_type` fails in a checker unless it infers exactly the type that is named.
"""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from huggingface_hub import CommitInfo
from PIL import Image
from transformers import BatchFeature

from janus_hf import (
    CheckpointInfo,
    JanusProConfig,
    JanusProForConditionalGeneration,
    JanusProImageProcessor,
    JanusProModel,
    JanusProPipeline,
    JanusProPipelineOutput,
    JanusProProcessor,
    JanusProVisionModel,
    JanusProVQModel,
    convert_checkpoint,
    inspect_checkpoint,
)
from janus_hf.data import PreparedDataset, load_prepared
from janus_hf.evaluation.evaluators import Evaluator, ShapesWorld, make_evaluator
from janus_hf.evaluation.report import Report, compare
from janus_hf.generation import ImageGenerationOutput
from janus_hf.modeling import JanusProCausalLMOutput
from janus_hf.training import JanusProSFTConfig, load_recipe, merge_adapter, train
from janus_hf.training.recipes import Recipe


# The pipeline
pipe = JanusProPipeline.from_pretrained("deepseek-ai/Janus-Pro-1B", dtype="bfloat16")
assert_type(pipe, JanusProPipeline)
assert_type(pipe.to("cuda"), JanusProPipeline)
assert_type(pipe.model, JanusProForConditionalGeneration)
assert_type(pipe.processor, JanusProProcessor)
pipe.set_progress_bar_config(disable=True)
pipe.enable_model_cpu_offload()
image = pipe("a lighthouse on a cliff at dawn, oil painting").images[0]
assert_type(image, Image.Image)
image.save("lighthouse.png")
output = pipe(["a fox", "a cat"], "blurred", guidance_scale=4, top_k=50, generator=torch.Generator(), batch_size=2)
assert_type(output, JanusProPipelineOutput[list[Image.Image]])
assert_type(output.image_ids, torch.Tensor)
assert_type(pipe("a fox", output_type="np").images, np.ndarray)
assert_type(pipe("a fox", output_type="pt").images, torch.Tensor)
assert_type(pipe("a fox", output_type="latent").images, torch.Tensor)
assert_type(pipe("a fox", return_dict=False), tuple[list[Image.Image], torch.Tensor])
assert_type(pipe("a fox", return_dict=False, output_type="np"), tuple[np.ndarray, torch.Tensor])
assert_type(pipe("a fox", return_dict=False, output_type="pt"), tuple[torch.Tensor, torch.Tensor])
assert_type(pipe.ask("photo.jpg", "What is this?", max_new_tokens=20), str)
assert_type(pipe.ask([image, Path("photo.jpg")], ["What?", "Where?"]), list[str])
assert_type(pipe.chat([{"role": "user", "content": "hi"}], do_sample=True, temperature=0.7), str)
assert_type(pipe.encode([image, "photo.jpg"]), torch.Tensor)
assert_type(pipe.decode(pipe.encode(image)), list[Image.Image])
assert_type(pipe.decode(pipe.encode(image), "np"), np.ndarray)
assert_type(pipe.decode(pipe.encode(image), output_type="pt"), torch.Tensor)
assert_type(pipe.enable_fast_decoding([1, 8]), bool)
assert_type(pipe.get_active_adapters(), list[str])
assert_type(pipe.push_to_hub("me/fox"), CommitInfo)


def first(result: JanusProPipelineOutput) -> Image.Image:
    """Return the first image: the class without an argument means PIL images."""
    return result.images[0]


assert_type(first(output), Image.Image)

# The model
model = JanusProForConditionalGeneration.from_pretrained("deepseek-ai/Janus-Pro-1B")
assert_type(model, JanusProForConditionalGeneration)
assert_type(model.to("cuda"), JanusProForConditionalGeneration)
assert_type(model.eval(), JanusProForConditionalGeneration)
assert_type(model.config, JanusProConfig)
assert_type(model.config.vq_config.num_image_tokens, int)
assert_type(JanusProModel.from_pretrained("deepseek-ai/Janus-Pro-1B"), JanusProModel)
assert_type(JanusProVQModel.from_pretrained("codec").to("cpu"), JanusProVQModel)
assert_type(JanusProVisionModel.from_pretrained("tower"), JanusProVisionModel)
ids = torch.zeros(1, 8, dtype=torch.long)
assert_type(model(input_ids=ids, labels=ids), JanusProCausalLMOutput)
assert_type(model.generate(ids, max_new_tokens=4), torch.Tensor)
assert_type(model.generate_images(ids, guidance_scale=5.0, do_sample=False), torch.Tensor)
assert_type(model.generate_images(ids, return_dict_in_generate=True), ImageGenerationOutput)
assert_type(model.generate_images(ids, return_dict_in_generate=True).image_ids, torch.Tensor)
assert_type(model.encode_image_ids(torch.zeros(1, 3, 384, 384)), torch.Tensor)
assert_type(model.decode_image_ids(ids), torch.Tensor)
assert_type(model.compile_generation(), bool)

# The processor
processor = JanusProProcessor.from_pretrained("deepseek-ai/Janus-Pro-1B")
assert_type(processor, JanusProProcessor)
assert_type(processor.image_processor, JanusProImageProcessor)
assert_type(processor.image_processor([image], mode="generation"), BatchFeature)
assert_type(processor("Describe <image_placeholder>", [image]), BatchFeature)
assert_type(processor.prepare_image_generation(["a fox"], "blurred").to("cuda"), BatchFeature)
assert_type(processor.apply_chat_template([{"role": "user", "content": "hi"}]), str)
assert_type(processor.apply_chat_template([[{"role": "user", "content": "hi"}]]), list[str])
inputs = processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=True, return_dict=True)
assert_type(inputs, BatchFeature)
assert_type(processor.decode([1, 2]), str)
assert_type(processor.batch_decode([[1, 2]]), list[str])
assert_type(processor.post_process_images(torch.zeros(1, 3, 8, 8)), list[Image.Image])
assert_type(processor.post_process_images(torch.zeros(1, 3, 8, 8), "np"), np.ndarray)
images = processor.post_process_images(model.decode_image_ids(model.generate_images(**inputs)))
images[0].save("fox.png")
model.generate(**inputs, max_new_tokens=64)

# Checkpoints, evaluation, training
assert_type(inspect_checkpoint("deepseek-ai/Janus-Pro-1B"), CheckpointInfo)
convert_checkpoint("deepseek-ai/Janus-Pro-1B", "janus-1b", "transformers")
evaluator = make_evaluator("pope", data="POPE.tsv")
assert_type(evaluator, Evaluator)
assert_type(evaluator(pipe, "runs/pope"), Report)
assert_type(ShapesWorld()(pipe), Report)
assert_type(compare({"mine": evaluator(pipe, "runs/pope")}), str)
assert_type(load_recipe("recipes/lora_drawing.yaml"), Recipe)
assert_type(train("recipes/lora_drawing.yaml"), Path)
assert_type(load_prepared("prepared/mine"), PreparedDataset)
JanusProSFTConfig(output_dir="runs/mine")
merge_adapter("runs/mine", "merged")
