"""A function that makes the model card (README.md) of a checkpoint that this package saves or uploads."""

import os

from huggingface_hub import ModelCard, ModelCardData

from ..modeling import JanusProForConditionalGeneration


_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A Janus-Pro model: it answers questions about images and generates images from prompts.

```python
from janus_hf import JanusProPipeline

pipe = JanusProPipeline.from_pretrained("{{ repo_id }}")
pipe("a fox in the snow").images[0].save("fox.png")
print(pipe.ask("fox.png", "What is in this image?"))
```

| | |
|---|---|
| language model | {{ layers }} layers x {{ width }} |
| generated images | {{ side }}x{{ side }} pixels, {{ codes }} image tokens out of {{ codebook }} |
| dtype | {{ dtype }} |
"""


def model_card(model: JanusProForConditionalGeneration, repo_id: str = "<this repository>") -> ModelCard:
    """Return a model card that states the model's sizes and dtype and shows the code that uses the model.

    Args:
        model: The model. If it was loaded from another Hub repository, the card names that one as `base_model`.
        repo_id: Id of the repository that the card belongs to. The code in the card loads the model from it; by
            default that code has a placeholder for it.
    """
    config = model.config
    source = config.name_or_path
    # A repository id is `organisation/name`; a relative folder may look the same, but exists.
    from_hub = bool(source) and source.count("/") == 1 and not os.path.exists(source)
    data = ModelCardData(
        library_name="janus_hf",
        pipeline_tag="any-to-any",
        base_model=source if from_hub and source != repo_id else None,
        license="other",
        license_name="deepseek",
        license_link="https://github.com/deepseek-ai/DeepSeek-LLM/blob/HEAD/LICENSE-MODEL",
        tags=["janus", "janus-pro", "text-to-image", "image-text-to-text"],
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=repo_id.split("/")[-1] if "<" not in repo_id else "Janus-Pro",
        repo_id=repo_id,
        layers=config.text_config.num_hidden_layers,
        width=config.text_config.hidden_size,
        side=config.vq_config.image_size,
        codes=config.vq_config.num_image_tokens,
        codebook=config.vq_config.num_embeddings,
        dtype=str(model.dtype).removeprefix("torch."),
    )


__all__ = ["model_card"]
