"""CLIPScore and FID of pictures that are there already, by whomever they were drawn.

CLIPScore has one definition here, the reward `rewards.ClipScore`; the metric is its mean over the pictures.
torchmetrics' `CLIPScore` gives the same number where no cosine is negative (a test compares them). It is not called
itself: release 1.9 does not take the outputs of transformers 5, and cuts the end token off long prompts.

FID is torchmetrics' `FrechetInceptionDistance`, fed batch by batch: memory does not grow with the number of pictures.
Every process of an `accelerate launch` makes the same call and takes its share; all get the same report.
"""

from .clip_score import evaluate_clip_score, save_report
from .fid import ENOUGH, VisionFeatures, evaluate_fid
from .image_folders import drawn_with, folder_pictures, prompted_pictures, reference_pictures, run_pictures


PICTURE_METRICS = ("clipscore", "fid")

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
