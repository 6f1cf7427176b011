"""Load a tiny model split over the ranks, and compare its answers with those of the whole model.

Run by `test_text_generation.py`: `torchrun tensor_parallel_ranks.py tied|untied FOLDER`.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist


sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import _make_model, _tiny_config
from janus_hf import JanusProForConditionalGeneration


def main(head: str, folder: str) -> None:
    dist.init_process_group("gloo")
    whole = _make_model(_tiny_config(tie_word_embeddings=head == "tied"))
    assert (whole.lm_head.weight is whole.get_input_embeddings().weight) is (head == "tied")
    if dist.get_rank() == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    split = JanusProForConditionalGeneration.from_pretrained(folder, tp_plan="auto")
    ids = torch.tensor([[92, 3, *[90] * 9, 5, 6, 97, 98]])
    batch = {"input_ids": ids, "pixel_values": torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        torch.testing.assert_close(split(**batch).logits, whole(**batch).logits, atol=1e-4, rtol=0)
        losses = [model(**batch, labels=ids).loss for model in (split, whole)]
        torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    answers = [model.generate(**batch, max_new_tokens=5, do_sample=False) for model in (split, whole)]
    assert torch.equal(*answers)
    prompt = torch.tensor([[92, 3, 94]])
    assert torch.equal(*[model.generate_images(prompt, do_sample=False) for model in (split, whole)])
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
