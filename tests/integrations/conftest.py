"""The adapter modules, imported on stubs of the harnesses and again on the harnesses where they are installed.

`make test-harnesses` makes an environment with both harnesses and runs this folder there.
`JANUS_HF_REQUIRE_HARNESSES=1` turns a missing harness from a skip into a failure.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from harness_stubs import (
    StubBaseModel,
    StubLmms,
    StubManifest,
    module,
    standing_in,
    stub_dataset_type,
)


def lacking(name: str) -> None:
    """Skip the test; or fail it in a run that requires the harnesses."""
    message = f"{name} is not installed; `make test-harnesses` makes an environment that has it"
    if os.environ.get("JANUS_HF_REQUIRE_HARNESSES") == "1":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def frameworks(kind: str, name: str, ours: str, stubs: dict[str, ModuleType]) -> Iterator[ModuleType]:
    """Import our adapter module anew, on the real harness or on stubs of it, and yield it."""
    if kind == "real" and importlib.util.find_spec(name) is None:
        lacking(name)
    with pytest.MonkeyPatch.context() as patch:
        for stub, content in (stubs if kind == "stub" else {}).items():
            patch.setitem(sys.modules, stub, content)
        patch.delitem(sys.modules, ours, raising=False)
        yield importlib.import_module(ours)
        sys.modules.pop(ours)


@pytest.fixture(scope="module", params=["stub", "real"])
def lmms(request):
    """The module `janus_hf.integrations.lmms_eval_model`, on a stub of lmms-eval and on the real one."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.models")
    stubs = {name: module(name) for name in names}
    stubs["lmms_eval.api.model"] = module("lmms_eval.api.model", lmms=StubLmms)
    stubs["lmms_eval.models.registry_v2"] = module("lmms_eval.models.registry_v2", ModelManifest=StubManifest)
    with frameworks(request.param, "lmms_eval", "janus_hf.integrations.lmms_eval_model", stubs) as ours:
        yield ours


@pytest.fixture(scope="module", params=["stub", "real"])
def vlmeval(request):
    """The module `janus_hf.integrations.vlmeval`, on a stub of VLMEvalKit and on the real one."""
    stubs = {name: module(name) for name in ("vlmeval", "vlmeval.vlm")}
    stubs["vlmeval"].vlm = stubs["vlmeval.vlm"]
    stubs["vlmeval.vlm.base"] = module("vlmeval.vlm.base", BaseModel=StubBaseModel)
    stubs["vlmeval.dataset"] = module("vlmeval.dataset", DATASET_TYPE=stub_dataset_type)
    stubs["vlmeval.config"] = module("vlmeval.config", supported_VLM={})
    stubs["vlmeval.run"] = stubs["vlmeval"].run = module("vlmeval.run", main=lambda: None)
    with standing_in(), frameworks(request.param, "vlmeval", "janus_hf.integrations.vlmeval", stubs) as ours:
        yield ours


@pytest.fixture(scope="module")
def pandas():
    if importlib.util.find_spec("pandas") is None:
        lacking("pandas")
    return importlib.import_module("pandas")
