"""The command `janus-hf draw`, which generates images from prompts."""

import argparse
import re
from pathlib import Path

from .model_arguments import Commands, add_model_arguments, batch_size, load_pipeline


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_draw_parser(commands: Commands) -> None:
    """Add the sub-command `draw` to the parser of `janus-hf`."""
    draw = commands.add_parser("draw", help="generate images from prompts")
    draw.add_argument(
        "prompt",
        nargs="+",
        help="description of the image; several prompts make several images. The model inside the package, which is "
        "used without -m, wants 'a photo of a red circle and a blue square' and the like",
    )
    draw.add_argument("-o", "--output", type=Path, default=Path("."), help="folder, or a .png file for a single image")
    draw.add_argument("-n", "--num-images", type=int, default=1, help="images per prompt")
    draw.add_argument("--negative-prompt", help="description of what the images must not show")
    draw.add_argument("--seed", type=int, default=0, help="seed of the first image; every further image adds 1")
    draw.add_argument(
        "--guidance-scale", type=float, help="1 is without guidance (default: the model's own, 5 if it has none)"
    )
    draw.add_argument("--temperature", type=float, default=1.0)
    draw.add_argument("--top-k", type=int, help="sample among this many of the likeliest image tokens (default: all)")
    draw.add_argument(
        "--top-p", type=float, help="sample among the likeliest image tokens up to this probability (default: all)"
    )
    draw.add_argument(
        "--batch-size",
        type=batch_size,
        default=8,
        help="images at a time; auto: as many as the memory holds",
    )
    draw.add_argument("--lora", help="folder or repository of an adapter to generate with")
    draw.add_argument("--compile", action="store_true", help="compile the decoding step first: pays for many images")
    draw.add_argument(
        "--speculative-window",
        type=int,
        default=1,
        help="number of image tokens to guess ahead: the same images in fewer steps",
    )
    add_model_arguments(draw)
    draw.set_defaults(handler=_draw)


def _draw(arguments: argparse.Namespace) -> None:
    """Run `janus-hf draw`: generate images from prompts, write each image to a file and print the file's path."""
    import torch

    num_images = len(arguments.prompt) * arguments.num_images
    to_file = arguments.output.suffix.lower() in IMAGE_SUFFIXES
    if to_file and num_images != 1:
        raise ValueError(
            f"`--output` must be a folder for {num_images} images, got the file {arguments.output}: name a folder."
        )
    folder = arguments.output.parent if to_file else arguments.output
    folder.mkdir(parents=True, exist_ok=True)

    pipe = load_pipeline(arguments)
    if arguments.lora:
        pipe.load_lora_weights(arguments.lora)
    if arguments.compile:
        pipe.enable_fast_decoding(())
    seeds = [arguments.seed + i for i in range(num_images)]
    images, _ = pipe(
        arguments.prompt,
        negative_prompt=arguments.negative_prompt,
        num_images_per_prompt=arguments.num_images,
        guidance_scale=arguments.guidance_scale,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        # One generator per image, so that the image of a seed depends neither on the batch size nor on other images.
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        batch_size=arguments.batch_size,
        speculative_window=arguments.speculative_window,
        return_dict=False,
    )
    for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        name = f"{_slug(arguments.prompt[i // arguments.num_images])}-{seed}.png"
        path = arguments.output if to_file else folder / name
        image.save(path)
        print(path)


def _slug(prompt: str) -> str:
    """Return a file name, without suffix, made of a prompt: lower case, words joined by dashes, up to 48 characters.

    A prompt without any letter or digit becomes "picture".
    """
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48] or "picture"
