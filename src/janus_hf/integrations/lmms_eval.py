"""Function `manifest`, through which the evaluation harness lmms-eval finds Janus-Pro.

It is registered as the entry point `janus_pro` of the group `lmms_eval.models`.
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """Return the manifest that describes Janus-Pro to lmms-eval; lmms-eval calls this function.

    It contains the model's name `janus_pro`, its alias `janus` and the import path of its class.

    Raises:
        ImportError: If lmms-eval is not installed.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError("The manifest needs lmms-eval, which is missing: pip install 'lmms-eval>=0.7.3'.") from error

    class_path = "janus_hf.integrations.lmms_eval_model.JanusPro"
    return ModelManifest("janus_pro", simple_class_path=class_path, aliases=("janus",))


__all__ = ["manifest"]
