"""Registration of the pipeline with diffusers, whose own loaders then find its class and its components."""

import diffusers
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def register_pipeline(pipeline_class: type[DiffusionPipeline], components: tuple[type, ...]) -> None:
    """Let `DiffusionPipeline.from_pretrained` load this package's pipelines.

    diffusers has no function for this. It looks up the class of a pipeline as an attribute of the module `diffusers`,
    and the methods that load and save a component in the dictionary `LOADABLE_CLASSES`. A second call has no further
    effect. `AutoPipelineForText2Image` still refuses these pipelines with an error that names them: to add them to its
    table, all pipelines of diffusers would have to be imported, which takes seconds and prints warnings.

    Args:
        pipeline_class: Class of the pipeline, under whose name `model_index.json` records it.
        components: Classes of the components, which the module `janus_hf` exports.
    """
    setattr(diffusers, pipeline_class.__name__, pipeline_class)
    LOADABLE_CLASSES["janus_hf"] = {one.__name__: ["save_pretrained", "from_pretrained"] for one in components}
    ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["janus_hf"])


__all__ = ["register_pipeline"]
