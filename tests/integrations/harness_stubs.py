"""Stubs of lmms-eval and VLMEvalKit, and stand-ins for the libraries that the real VLMEvalKit imports.

VLMEvalKit imports every model and data set that it knows, and so many libraries that its base class does not use.
"""

import importlib.abc
import importlib.machinery
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch


# Third-party modules that VLMEvalKit 0.0.20 imports unconditionally and that have nothing to do with its base class.
STAND_INS = (
    "Levenshtein", "cv2", "decord", "jieba", "joblib", "math_verify", "nltk", "openai", "pylatexenc", "qwen_vl_utils",
    "rouge", "sklearn", "timeout_decorator", "torchvision",
)  # fmt: skip


def module(name: str, **content) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    vars(made).update(content)
    return made


class StubLmms:
    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = SimpleNamespace(add_partial=lambda attribute, request, result: None)

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)

    def clean(self):
        self.is_clean = True


@dataclass
class StubManifest:
    model_id: str
    simple_class_path: str
    aliases: tuple[str, ...]


class StubBaseModel:
    dump_image_func = None

    def dump_image(self, line, dataset):
        return self.dump_image_func(line)

    def set_dump_image(self, function):
        self.dump_image_func = function

    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)

    def chat(self, messages, dataset=None):
        return self.chat_inner(messages, dataset=dataset)


def stub_dataset_type(name: str) -> str:
    kinds = {"POPE": "Y/N", "MME": "Y/N", "MMBench_DEV_EN": "MCQ", "SEEDBench_IMG": "MCQ", "MMMU_DEV_VAL": "MCQ"}
    return kinds.get(name, "VQA")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        is_ours = name.partition(".")[0] in STAND_INS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_ours else None

    def create_module(self, spec):
        made = module(spec.name)
        made.__getattr__ = self.attribute
        return made

    @staticmethod
    def attribute(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)

    def exec_module(self, module):
        pass


@contextmanager
def standing_in() -> Iterator[None]:
    """Let VLMEvalKit import missing libraries, and undo the global changes that importing it makes."""
    finder, grad = StandIns(), torch.is_grad_enabled()
    context, rng = ssl._create_default_https_context, torch.get_rng_state()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in STAND_INS]:
            if isinstance(getattr(sys.modules[name].__spec__, "loader", None), StandIns):
                del sys.modules[name]
        ssl._create_default_https_context = context
        torch.set_grad_enabled(grad)
        torch.set_rng_state(rng)
