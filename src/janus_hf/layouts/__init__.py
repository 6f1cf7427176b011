"""The contents of checkpoint files, as tables and pure functions that use neither networks nor torch.

A layout is a way to write the same model to a folder. Two layouts are read and written:

* "original", in which deepseek-ai released the model (`janus_pro.py`): its `config.json` has the `model_type`
  "multi_modality" and the sub-configs `language_config`, `vision_config`, `gen_vision_config`, ..., and its weights
  have the names of the original code.
* "transformers", in which the Janus class inside transformers stores it (`in_tree.py`): its `config.json` has the
  `model_type` "janus" and the sub-configs `text_config`, `vision_config`, `vq_config`, and its weights have the names
  of that class, which are also the names in this package.

`detect.py` decides which of the two layouts a `config.json` has. Functions that write a file receive a configuration
object but do not import its class, because the configuration classes import this package.
"""

from .detect import Layout, layout_of, read_config


__all__ = ["Layout", "layout_of", "read_config"]
