"""CLIPScore and FID of pictures that are there already, by whomever they were drawn.

CLIPScore has one definition here, the reward `rewards.clip.ClipScore`; the metric is its mean over the pictures.
torchmetrics' `CLIPScore` gives the same number where no cosine is negative (a test compares them). It is not called
itself: release 1.9 does not take the outputs of transformers 5, and cuts the end token off long prompts.

FID is torchmetrics' `FrechetInceptionDistance`, fed batch by batch: memory does not grow with the number of pictures.
Every process of an `accelerate launch` makes the same call and takes its share; all get the same report.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image, ImageOps
from tqdm.auto import tqdm
from transformers.utils import logging

from ...rewards.clip import ClipScore
from ...rewards.image_io import UNREADABLE, open_rgb
from ...rewards.loading import Pretrained, group_indices
from ..paper import look_up
from ..report import Report
from ..run_folder import SETTINGS, environments, processes, recorded
from ..sheets import save_sheet


logger = logging.get_logger(__name__)

PICTURE_METRICS = ("clipscore", "fid")
ENOUGH = 10_000  # pictures on either side of a FID: far fewer, and their features' covariance is a poor estimate

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_PROMPTS = ("prompt", "caption", "text")


# Where pictures lie


def run_pictures(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """The pictures of a finished run in GenEval's layout, each with the prompt it was drawn from.

    Args:
        folder: With `00000/metadata.jsonl`, `00000/samples/0000.png` and so on: a run of `janus-hf eval`, or what
            another tool drew for the official scorer.

    Raises:
        FileNotFoundError: If the folder has no such pictures.
        ValueError: If prompts have different numbers of pictures, as in a run that was stopped.
    """
    places = [path.parent for path in sorted(Path(folder).glob("[0-9]*/metadata.jsonl"))]
    found = {place: sorted((place / "samples").glob("*.png")) for place in places}
    most = max(map(len, found.values()), default=0)
    if not most:
        raise FileNotFoundError(
            f"Expected the folder of a run, 00000/metadata.jsonl and 00000/samples/0000.png, at {folder}. Other "
            "pictures are read by --images."
        )
    for place, pictures in found.items():
        if len(pictures) < most:
            raise ValueError(
                f"{place} has {len(pictures)} pictures where other prompts have {most}: the run was stopped. The same "
                "command goes on with it."
            )
    return {picture: _prompt(place / "metadata.jsonl") for place, pictures in found.items() for picture in pictures}


def drawn_with(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the pictures of a run depend on, checkpoint and seed among them; empty where nothing is recorded.

    Raises:
        ValueError: If what is recorded is not of a run.
    """
    return recorded(folder)[0] if (Path(folder) / SETTINGS).is_file() else {}


def folder_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """All pictures (PNG, JPEG, WebP, BMP) in a folder and in its folders, sorted.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If it is the folder of a run, whose grids and sheets are pictures as well.
    """
    folder = Path(folder)
    if _is_run(folder):
        raise ValueError(f"{folder} holds a run, not pictures alone: read it by --results (run_pictures).")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not pictures:
        raise FileNotFoundError(f"Expected a folder of pictures ({', '.join(_SUFFIXES)}) at {folder}; found none.")
    return pictures


def reference_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures of a finished run, or of any folder.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: As `run_pictures`.
    """
    return list(run_pictures(folder)) if _is_run(Path(folder)) else folder_pictures(folder)


def prompted_pictures(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """The pictures of a folder with the prompts of its `metadata.jsonl`, the layout of an imagefolder.

    Args:
        folder: With lines `{"file_name": "0.png", "prompt": "a lighthouse"}`; "caption" and "text" are read as well.

    Raises:
        FileNotFoundError: If there are no pictures, or no `metadata.jsonl`.
        ValueError: If a line has another layout, or a picture no line. Pictures that are named but missing are found
            out when they are opened.
    """
    folder = Path(folder)
    pictures, lines = folder_pictures(folder), folder / "metadata.jsonl"
    if not lines.is_file():
        raise FileNotFoundError(
            f'There is no {lines}. CLIPScore needs a prompt for every picture: {{"file_name": "0.png", "prompt": '
            '"a lighthouse"}, a line for each.'
        )
    prompts: dict[Path, str] = {}
    for number, text in enumerate(lines.read_text(encoding="utf-8").splitlines(), start=1):
        line = _parsed(text) if text.strip() else {}
        prompt = next((line[name] for name in _PROMPTS if isinstance(line.get(name), str)), None)
        if text.strip() and (prompt is None or "file_name" not in line):
            raise ValueError(
                f"{lines}, line {number}: expected an object with 'file_name' and one of {_PROMPTS}, got {text!r}."
            )
        if prompt is not None:
            prompts[folder / line["file_name"]] = prompt
    if without := [path for path in pictures if path not in prompts]:
        raise ValueError(f"{lines} has no line for {len(without)} of {len(pictures)} pictures, as {without[0].name}.")
    return prompts


def _is_run(folder: Path) -> bool:
    return any(folder.glob("[0-9]*/samples"))


def _prompt(path: Path) -> str:
    """What the pictures of a folder of a run were drawn from."""
    line = _parsed(path.read_text(encoding="utf-8").partition("\n")[0])
    if not isinstance(line.get("prompt"), str):
        raise ValueError(f"{path}: expected an object with 'prompt' in the first line.")
    return str(line["prompt"])


def _parsed(text: str) -> dict[str, Any]:
    """A line of JSON; empty if it is none, or another thing than an object."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) else {}


# CLIPScore


def evaluate_clip_score(pictures: Mapping[Path, str], scorer: ClipScore | None = None) -> Report:
    """How well pictures fit their prompts, by CLIP.

    Args:
        pictures: Prompts by picture: `run_pictures` or `prompted_pictures`.
        scorer: Which CLIP, and how many pictures at a time; by default OpenAI's ViT-L/14.

    Returns:
        `clipscore`, in [0, 100], is the mean of 100 max(cos, 0) over the pictures; rows are pictures. Those that
        cannot be read are in `failures`. How many prompts are longer than CLIP reads is in the protocol.
    """
    scorer = scorer or ClipScore(device=processes().device)
    rows, failures = [], []
    for batch in _own_batches(list(pictures), scorer.batch_size, "scoring"):
        images, unread = _open(batch)
        scores = scorer(list(images.values()), [pictures[path] for path in images])
        rows += [
            {"filename": str(path), "prompt": pictures[path], "score": score}
            for path, score in zip(images, scores, strict=True)
        ]
        failures += unread
    rows = sorted(gather_object(rows), key=lambda row: str(row["filename"]))
    metrics = {"clipscore": float(np.mean([row["score"] for row in rows]))} if rows else {}
    sentences = [f"{len(rows)} pictures."]
    prompts = sorted({str(row["prompt"]) for row in rows})
    if cut := sum(scorer.is_cut(prompts)):
        sentences.append(f"{cut} of {len(prompts)} prompts were cut to {scorer.num_tokens} tokens.")
    protocol = " ".join([*sentences, look_up("clipscore").protocol])
    settings = {"clip": scorer.source, "environments": environments(None)}
    return Report("clipscore", metrics, "clipscore", protocol, settings, rows, sorted(gather_object(failures)))


# FID


class VisionFeatures(torch.nn.Module):
    """A vision model of transformers in the place of FID's Inception: DINOv2, CLIP, SigLIP and others that pool.

    Another network measures another distance. Its published values, such as those with DINOv2 (Stein et al., arXiv
    2306.04675), are not FIDs either.

    Args:
        model: Name, folder or model.
        processor, device, dtype: As for `Pretrained`.
    """

    def __init__(self, model: Any, processor: Any = None, **settings: Any) -> None:
        super().__init__()
        self.pretrained = Pretrained(model, processor, **settings)

    @property
    def name(self) -> str:
        """Where the model is from."""
        return self.pretrained.source

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures as `(N, 3, height, width)` uint8 to features `(N, D)` float32, on the pictures' device: the model
        may be on another.

        Raises:
            ValueError: If the model gives no pooled features.
        """
        model, processor = self.pretrained.model, self.pretrained.processor
        images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        inputs = getattr(processor, "image_processor", processor)(images=images, return_tensors="pt")
        see = getattr(model, "get_image_features", model)
        output = see(pixel_values=inputs["pixel_values"].to(model.device, model.dtype))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"{self.name} has no pooled features: choose a model like facebook/dinov2-large.")
        return pooled.flatten(start_dim=1).to(pixels.device, torch.float32)


def evaluate_fid(
    pictures: Sequence[Path],
    reference: Sequence[Path],
    network: torch.nn.Module | None = None,
    *,
    size: int | None = None,
    batch_size: int = 32,
) -> Report:
    """Fréchet distance between drawn pictures and pictures of reference.

    Args:
        pictures: Drawn ones.
        reference: What they are to be like.
        network: Takes uint8 pictures `(N, 3, height, width)`, gives features `(N, D)`; on the CPU when it is handed
            over, as torchmetrics asks it for D there. By default FID's Inception, by torch-fidelity, which is
            downloaded.
        size: Cut every picture to its central square and bring it to so many pixels a side (bicubic, antialiased)
            first. By default the network gets pictures as they are; Inception squeezes them to 299 x 299.
        batch_size: Pictures at a time. Only pictures of one size share a batch.

    Returns:
        `fid`, or with another network `fid[its name]`; rows are pictures. Those that cannot be read are in `failures`.

    Raises:
        ImportError: If torchmetrics is missing, or torch-fidelity without another network.
        ValueError: If a number is out of range, or there are too few pictures.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    metric, name = _frechet_distance(network)
    device = torch.device("cpu") if processes().device.type == "mps" else processes().device  # MPS has no float64
    metric.to(device)
    rows, failures = [], []
    for side, paths in (("drawn", pictures), ("reference", reference)):
        for batch in _own_batches(paths, batch_size, side):
            images, unread = _open(batch)
            squares = [_square(image, size) for image in images.values()]
            for same in group_indices(image.size for image in squares).values():
                pixels = np.stack([np.asarray(squares[index]) for index in same])
                metric.update(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device), real=side == "reference")
            rows += [{"filename": str(path), "side": side} for path in images]
            failures += unread
    least = min(gather_object([len(rows)]))
    rows = sorted(gather_object(rows), key=lambda row: (row["side"], row["filename"]))
    counts = {side: sum(row["side"] == side for row in rows) for side in ("drawn", "reference")}
    if min(counts.values()) < 2 or not least:
        raise ValueError(
            "FID needs at least two readable pictures on either side, and one for every process; read "
            f"{counts['drawn']} drawn ones and {counts['reference']} of reference."
        )
    settings = {"network": name, "size": size, "counts": counts, "environments": environments(None)}
    metrics = {"fid" if network is None else f"fid[{name}]": metric.compute().item()}
    protocol = _fid_protocol(counts, name, size, is_inception=network is None)
    return Report("fid", metrics, next(iter(metrics)), protocol, settings, rows, sorted(gather_object(failures)))


def _frechet_distance(network: torch.nn.Module | None) -> tuple[Any, str]:
    """torchmetrics' metric, and what its network is called."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError("FID is torchmetrics', which is missing: pip install 'janus_hf[eval-metrics]'.") from error
    if network is not None:
        return FrechetInceptionDistance(network.eval()), getattr(network, "name", type(network).__name__)
    try:
        return FrechetInceptionDistance(), "inception-v3-compat"
    except ImportError as error:
        raise ImportError(
            "FID's Inception is torch-fidelity's, which is missing: pip install 'janus_hf[eval-metrics]', or "
            "choose another network (--network), which gives other numbers."
        ) from error


def _fid_protocol(counts: Mapping[str, int], name: str, size: int | None, *, is_inception: bool) -> str:
    sentences = [
        f"{counts['drawn']} drawn pictures against {counts['reference']} of reference, features of {name}.",
        f"Cut to the central square, {size} x {size}." if size else "Pictures as they are.",
    ]
    if not is_inception:
        sentences.append("Not Inception's features: not comparable with published FIDs.")
    if min(counts.values()) < ENOUGH:
        few = f"Fewer than {ENOUGH} pictures on a side: the distance comes out too large, compare equal numbers only."
        sentences.append(few)
        if processes().is_main_process:
            logger.warning(f"{sentences[0]} {few}")
    return " ".join([*sentences, look_up("fid").protocol])


def _square(image: Image.Image, size: int | None) -> Image.Image:
    return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


# Both


def save_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """The files of `Report.save`, and of CLIPScore `sheet.png` with the best and the worst pictures."""
    report.save(folder)
    scored = [row for row in report.rows if "score" in row]
    if scored:
        columns = [[row[name] for row in scored] for name in ("filename", "prompt", "score")]
        save_sheet(Path(folder), *columns)


def _own_batches(paths: Sequence[Path], batch_size: int, title: str) -> Iterator[Sequence[Path]]:
    """This process's share, batch by batch, under a progress bar."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    state = processes()
    own = paths[state.process_index :: state.num_processes]
    with tqdm(total=len(own), desc=title, unit="picture", disable=not state.is_main_process) as progress:
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            yield batch
            progress.update(len(batch))


def _open(paths: Sequence[Path]) -> tuple[dict[Path, Image.Image], list[str]]:
    """RGB pictures by path, and a line for each that cannot be read."""
    images, unread = {}, []
    for path in paths:
        try:
            images[path] = open_rgb(path)
        except UNREADABLE as error:
            unread.append(f"{path} cannot be read ({error})")
    return images, unread


__all__ = [
    "ENOUGH",
    "PICTURE_METRICS",
    "VisionFeatures",
    "drawn_with",
    "evaluate_clip_score",
    "evaluate_fid",
    "folder_pictures",
    "prompted_pictures",
    "reference_pictures",
    "run_pictures",
    "save_report",
]
