"""Model cards for what this package shares on the Hub."""

import os
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A Janus-Pro model: it answers questions about pictures and draws pictures from prompts.

```python
from janus_hf import JanusProPipeline

pipe = JanusProPipeline.from_pretrained("{{ repo_id }}")
pipe("a fox in the snow").images[0].save("fox.png")
print(pipe.ask("fox.png", "What is in this picture?"))
```

| | |
|---|---|
| language model | {{ layers }} layers x {{ width }} |
| drawn pictures | {{ side }}x{{ side }} pixels, {{ codes }} codes of {{ codebook }} |
| dtype | {{ dtype }} |
"""


def model_card(model: Any, repo_id: str = "<this repository>") -> ModelCard:
    """A card that states what the model is and how to use it; `base_model` is set when the model came from the Hub."""
    config = model.config
    source = config.name_or_path
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
