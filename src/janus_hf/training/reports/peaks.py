"""`find_peak`, which returns how many operations per second a GPU can do at most, by its name."""

import re


# Pattern that the whole name of a card in torch must match, without "NVIDIA" or "AMD" -> its peak in TFLOP/s of dense
# matrix multiplication in bfloat16 (float16 on Turing and Volta, which have no bfloat16) with sums in float32. Data
# sheets also print twice that for sparse matrices. The sources are NVIDIA's and AMD's data sheets of the card, and for
# GeForce cards the appendices of NVIDIA's white papers on GA102, Ada and RTX Blackwell ("Peak BF16 Tensor TFLOPS with
# FP32 Accumulate"). A card whose variants differ in speed is listed by the variant.
PEAKS = {
    r"A100\b.*": 312.0,
    r"A10": 125.0,
    r"A30": 165.0,
    r"A40": 149.7,
    r"H100 PCIe": 756.0,
    r"H100 NVL": 835.0,
    r"H100 (80GB HBM3|SXM\w*)": 989.0,
    r"H200 NVL": 835.0,
    r"H200": 989.0,
    r"GH200\b.*": 989.0,
    r"B200": 2250.0,
    r"L4": 121.0,
    r"L40S": 362.0,
    r"RTX A6000": 154.8,
    r"GeForce RTX 3090": 71.0,
    r"GeForce RTX 4090": 165.2,
    r"GeForce RTX 5090": 209.5,
    r"Instinct MI300X.*": 1307.4,
    r"Instinct MI325X.*": 1307.4,
    r"(Tesla )?T4": 65.0,
    r"(Tesla )?V100-SXM2-.*": 125.0,
    r"(Tesla )?V100-PCIE-.*": 112.0,
    r"(Tesla )?V100S-PCIE-.*": 130.0,
}


def find_peak(name: str) -> float | None:
    """Return the peak of a card in TFLOP/s of dense bfloat16 matrix multiplication, or None if it is not listed.

    Args:
        name: The card's name as `torch.cuda.get_device_name` returns it. A part of a card (MIG) is not listed.
    """
    card = re.sub(r"^(NVIDIA|AMD) ", "", name.strip())
    if re.search(r"\bMIG\b", card):
        return None
    return next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, card)), None)


__all__ = ["PEAKS", "find_peak"]
