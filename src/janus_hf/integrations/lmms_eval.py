"""How lmms-eval finds Janus-Pro: the payload of the entry point `janus_pro` in its group `lmms_eval.models`."""

from typing import Any


def manifest() -> Any:
    """lmms-eval's `ModelManifest` of `janus_pro`, also known as `janus`; lmms-eval calls this itself.

    Raises:
        ImportError: If lmms-eval is not installed.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError(
            "The manifest is for lmms-eval, which is missing: pip install 'lmms-eval>=0.7.3'."
        ) from error

    class_path = "janus_hf.integrations.lmms_eval_model.JanusPro"
    return ModelManifest("janus_pro", simple_class_path=class_path, aliases=("janus",))


__all__ = ["manifest"]
