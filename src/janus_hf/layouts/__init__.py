"""What the files of a checkpoint hold, as tables and pure functions: no networks, no torch.

A layout is a way to write the same model to a folder; two are read and written:

* "original", as deepseek-ai released the model (`janus_pro.py`): `model_type` "multi_modality", the parts as
  `language_config`, `vision_config`, `gen_vision_config`, ..., and weight names of the original code.
* "transformers", as the Janus class inside transformers stores it (`in_tree.py`): `model_type` "janus", the parts as
  `text_config`, `vision_config`, `vq_config`, and weight names of that class, which are ours too.

`detect.py` decides which of the two a `config.json` is. Functions that write take a configuration object and import no
class of it, so that configurations can be built on this package.
"""

from .detect import Layout, layout_of, read_config


__all__ = ["Layout", "layout_of", "read_config"]
