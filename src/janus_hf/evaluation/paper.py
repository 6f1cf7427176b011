"""The published scores of Janus models on benchmarks, as data, and notes on how they were measured.

Reports print these scores beside their own. Sources: the papers of Janus-Pro (arXiv 2501.17811), tables 3 to 5, and of
Janus (arXiv 2410.13848), tables 2 and 3. How the authors measured the understanding benchmarks is known from their
adapter for VLMEvalKit (open-compass/VLMEvalKit#541).
"""

from dataclasses import dataclass, field

from ..arguments import checked


@dataclass(frozen=True)
class Published:
    """A benchmark and the scores that were published for it.

    Args:
        title: Usual name of the benchmark.
        protocol: How the published scores were measured, as far as is known.
        data: Where the benchmark's data can be had, and their licence.
        scores: Published scores by model, then by metric, in the benchmark's own units.
        remarks: Known attempts to reproduce the scores: that they failed, or the other numbers that they gave.
        digits: Number of digits after the decimal point of printed scores: 3 for shares in [0, 1], 2 for percentages
            and sums.
    """

    title: str
    protocol: str
    data: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    remarks: str = ""
    digits: int = 2


def _models(**scores: tuple[float, float, float]) -> dict[str, dict[str, float]]:
    """Convert scores by metric to scores by model, then by metric.

    Args:
        scores: By metric, the scores of Janus 1.3B, Janus-Pro 1B and Janus-Pro 7B.

    Returns:
        Scores by model, then by metric. The models are in reverse order, Janus-Pro 7B first.
    """
    names = ("Janus-Pro-7B (paper)", "Janus-Pro-1B (paper)", "Janus-1.3B (paper)")
    return {
        model: {metric: values[2 - index] for metric, values in scores.items()} for index, model in enumerate(names)
    }


_TSV = "VLMEvalKit's TSV files (https://github.com/open-compass/VLMEvalKit)"

BENCHMARKS: dict[str, Published] = {
    "geneval": Published(
        "GenEval",
        "553 prompts, 4 images each; Mask2Former finds objects, CLIP names colours; mean of six tags. The authors "
        "have not published guidance, temperature or seeds of their runs (deepseek-ai/Janus#210, #212, #237).",
        "prompts/evaluation_metadata.jsonl of https://github.com/djghosh13/geneval (MIT)",
        _models(
            single_object=(0.97, 0.98, 0.99),
            two_object=(0.68, 0.82, 0.89),
            counting=(0.30, 0.51, 0.59),
            colors=(0.84, 0.89, 0.90),
            position=(0.46, 0.65, 0.79),
            color_attr=(0.42, 0.56, 0.66),
            overall=(0.61, 0.73, 0.80),
        ),
        "1B with the released script, temperature 1: two_object 0.697, position 0.463 (deepseek-ai/Janus#210). The "
        "official detector is mmdet's Mask2Former; transformers' is another training run of the same network, so "
        "scores near a threshold differ.",
        digits=3,
    ),
    "dpg": Published(
        "DPG-Bench",
        "1065 prompts, 4 images each in a 2x2 grid; mPLUG-large answers yes or no to every proposition; a "
        "proposition whose parent failed counts as failed; mean over prompts, times 100.",
        "dpg_bench/ of https://github.com/TencentQQGYLab/ELLA (Apache-2.0)",
        _models(
            **{"global": (82.33, 87.58, 86.90)},
            entity=(87.38, 88.63, 88.90),
            attribute=(87.70, 88.17, 89.40),
            relation=(85.46, 88.98, 89.32),
            other=(86.41, 88.30, 89.48),
            overall=(79.68, 82.63, 84.19),
        ),
        "1B: 74.64 (JiuhaiChen/BLIP3o#46). Other judges than mPLUG give other numbers.",
    ),
    "pope": Published(
        "POPE",
        "F1 of yes on the random split; the split is the authors' choice (VLMEvalKit#541: Janus-1.3B 87.1 random, "
        "85.5 over all three). That their score is F1 is inferred from VLMEvalKit, whose POPE column it is.",
        f"POPE.tsv of {_TSV}; COCO images",
        _models(**{"random F1": (87.0, 86.2, 87.4)}),
        "1B through VLMEvalKit: 84.11 (deepseek-ai/Janus#239); the splits are not stated.",
    ),
    "mme": Published(
        "MME",
        "Sum over the ten perception tasks of accuracy + accuracy+ (both questions about an image right), each in "
        "percent: at most 2000.",
        f"MME.tsv of {_TSV}, for research",
        _models(perception=(1338.0, 1444.0, 1567.1)),
        "7B by others: 1520 (VLMEvalKit#794).",
    ),
    "mmbench": Published(
        "MMBench dev en",
        "DEV_EN, every question once (not circular), the option's letter asked for; percent right.",
        f"MMBench_DEV_EN.tsv of {_TSV} (Apache-2.0)",
        _models(overall=(69.4, 75.5, 79.2)),
        "1B through VLMEvalKit: 74.2 (deepseek-ai/Janus#239); 7B with lmms-eval's other prompt: 65.8 (#205).",
    ),
    "seed": Published(
        "SEED-Bench image",
        "SEEDBench_IMG, the option's letter asked for; percent right.",
        f"SEEDBench_IMG.tsv of {_TSV} (CC-BY-NC-4.0)",
        _models(overall=(63.7, 68.3, 72.1)),
        "1B through VLMEvalKit: 67.28 (deepseek-ai/Janus#239).",
    ),
    "gqa": Published(
        "GQA",
        "Balanced test-dev, answer equal after normalisation; percent right. The authors' exact prompt is not known.",
        f"GQA_TestDev_Balanced.tsv of {_TSV} (CC-BY-4.0 images of Visual Genome)",
        _models(overall=(59.1, 59.3, 62.0)),
    ),
    "mmmu": Published(
        "MMMU",
        "Validation part (900 questions) of MMMU_DEV_VAL, the option's letter asked for; percent right.",
        f"MMMU_DEV_VAL.tsv of {_TSV} (Apache-2.0)",
        _models(overall=(30.5, 36.3, 41.0)),
        "1B through VLMEvalKit: 34.9 (deepseek-ai/Janus#239).",
    ),
    "mmvet": Published(
        "MM-Vet",
        "Free answers under a system prompt that asks for reasoning, judged by GPT-4 in the official evaluator.",
        f"MMVet.tsv of {_TSV} (Apache-2.0); the judge is https://github.com/yuweihao/MM-Vet",
        _models(overall=(34.3, 39.8, 50.0)),
        "1B through VLMEvalKit: 36.7 (deepseek-ai/Janus#239).",
    ),
    "geneval2": Published(
        "GenEval 2",
        "800 prompts, one image each; a vision-language model gives the probability of every atom's right answer "
        "(Soft-TIFA): arithmetic mean over atoms, geometric mean over prompts.",
        "https://github.com/facebookresearch/GenEval2 (CC-BY-NC-4.0: not part of this package)",
    ),
    "wise": Published(
        "WISE",
        "1000 prompts that need world knowledge, one image each; a judge gives consistency, realism and aesthetics, "
        "0 to 2 each: WiScore = (0.7 c + 0.2 r + 0.1 a) / 2.",
        "data/*.json of https://github.com/PKU-YuanGroup/WISE",
    ),
    "clipscore": Published(
        "CLIPScore",
        "100 max(cos, 0) of image and prompt, mean over images: torchmetrics' scale. Hessel et al. (arXiv "
        "2104.08718) have 2.5 max(cos, 0). Only numbers of the same CLIP can be compared.",
        "images of any run, or any images with prompts",
    ),
    "fid": Published(
        "FID",
        "Depends on the reference images, their number and their resizing. Published: 8.53 by Janus-1.3B, 30,000 "
        "prompts of COCO val2014, resized from 384 to 256 bicubically, GigaGAN's script (deepseek-ai/Janus#22).",
        "images of any run, and reference images such as COCO's",
    ),
    "shapes": Published(
        "the shapes world", "Coloured shapes on a board, judged exactly.", "made by this package", digits=3
    ),
}


def published(benchmark: str) -> dict[str, dict[str, float]]:
    """Return the scores that the papers report for a benchmark, by model (newest first), then by metric.

    The result is empty if no scores were published.

    Raises:
        ValueError: If the benchmark is unknown.
    """
    return look_up(benchmark).scores


@checked()
def look_up(benchmark: str) -> Published:
    """Return a benchmark's title, data source and published scores, which are its entry in `BENCHMARKS`.

    Raises:
        ValueError: If the benchmark is unknown; the message lists the known ones.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"{benchmark!r} is not a benchmark of this package. Known: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[benchmark]


__all__ = ["BENCHMARKS", "Published", "look_up", "published"]
