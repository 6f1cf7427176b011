"""The plain calls of a notebook print nothing that is not meant for its reader."""

import subprocess
import sys

import pytest


CALLS = """
import logging, warnings

import torch
import diffusers
from transformers import PreTrainedModel  # what its import says is not about this package

warnings.simplefilter("error")
records = []
handler = logging.Handler()
handler.emit = records.append
for name in (None, "transformers", "diffusers", "accelerate", "peft", "huggingface_hub"):
    logging.getLogger(name).addHandler(handler)

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL

for dtype in ({"dtype": "float32"}, {"torch_dtype": torch.float32}, {}):
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, **dtype)
pipe = pipe.to(torch.float32)
pipe.set_progress_bar_config(disable=True)
image = pipe("a photo of a red circle", image_ids=torch.zeros(1, 60, dtype=torch.long)).images[0]
pipe.ask(image, "What colour is the circle?", max_new_tokens=4)
pipe.ask(image, ["What colour is the circle?", "Is there a square?"], max_new_tokens=4)
pipe.ask(image, "What colour is the circle?", max_new_tokens=4, do_sample=True, temperature=0.7, top_k=5, top_p=0.9)
pipe.chat([{"role": "user", "content": "hi"}], max_new_tokens=4, num_beams=2)
pipe.decode(pipe.encode(image))
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}]
pipe.processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
pipe.save_pretrained(FOLDER)
repr(pipe), pipe("a photo", output_type="latent")
print([record.getMessage() for record in records if record.levelno >= logging.WARNING])
"""


@pytest.mark.slow
def test_plain_calls_print_no_warnings(tmp_path):
    code = CALLS.replace("FOLDER", repr(str(tmp_path)))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]", result.stdout
