"""Anything a user may call a picture -> the 8-bit RGB image a person would see.

The original (deepseek-ai/Janus, `load_pil_images`) calls `convert("RGB")` and nothing else. That ignores the EXIF
orientation, turns transparent pixels into whatever colour is stored beneath them (mostly black) and clips 16-bit
greyscale to white. Plain RGB, greyscale and palette pictures come out identical here; the others come out right.
"""

import base64
import binascii
import http.client
import os
import urllib.request
from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


Picture: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor

_KINDS = "a PIL image, a path, an http(s) URL, a base64 string, encoded bytes, or a numpy/torch array"
_HEADERS = {"User-Agent": "janus_hf"}  # many image hosts refuse Python's default
_SHAPES = "(H, W), (H, W, 1|3|4) or (1|3|4, H, W)"


def load_picture(source: Picture) -> Image.Image:
    """Returns `source` as a new RGB `PIL.Image.Image`; the caller's object is never changed.

    EXIF orientation is applied, transparency is composited over white, 16-bit greyscale is scaled to 8 bit, and the
    first frame of an animation is taken.

    Args:
        source: A PIL image of any mode but "F"; a path; an http(s) URL; a `data:` URL or bare base64 string; the bytes
            of an encoded file; or a numpy/torch array `(H, W)`, `(H, W, 1|3|4)` or `(1|3|4, H, W)`, uint8 in
            [0, 255] or floating point in [0, 1]. Where both ends of an array could be channels, numpy is read as
            channels-last and torch as channels-first, as is the custom of each.

    Raises:
        FileNotFoundError: `source` is a string that is neither an existing file nor a URL nor base64.
        ValueError: anything else that is no picture: undecodable or truncated data, too many pixels
            (`PIL.Image.MAX_IMAGE_PIXELS`), a side of zero pixels, values out of range, an unsupported type.
    """
    if isinstance(source, Image.Image):
        _check_sides(source.size)
        return _flatten(_decode(source, "the PIL image"))
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _flatten(_from_array(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _flatten(_decode(BytesIO(source), "the bytes"))
    if isinstance(source, (str, os.PathLike)):
        return _flatten(_decode(_locate(os.fspath(source)), f"{_short(source)!r}"))
    raise ValueError(f"Expected {_KINDS}; got {type(source).__name__}. Convert it to one of these first.")


def flatten_pictures(pictures: Any) -> list[Picture]:
    """A picture, a 4-D array of pictures or any nesting of lists (`None` = no picture) -> a list in reading order."""
    if pictures is None:
        return []
    if isinstance(pictures, (list, tuple)):
        return [picture for item in pictures for picture in flatten_pictures(item)]
    if isinstance(pictures, (np.ndarray, torch.Tensor)) and pictures.ndim == 4:
        return list(pictures)
    return [pictures]


def _locate(source: str) -> str | BytesIO:
    """A string -> a file that exists, or the bytes it points at or contains."""
    if source.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(urllib.request.Request(source, headers=_HEADERS), timeout=60) as reply:
                return BytesIO(reply.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(
                f"Expected a reachable picture URL; {_short(source)!r} failed with {error!r}. Check the address and "
                "the network, or download the file and pass its path."
            ) from error
    if os.path.isfile(source):
        return source
    is_data_url = source.startswith("data:")
    try:
        content = base64.b64decode("".join(source.partition(",")[2 if is_data_url else 0].split()), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    # A relative path may happen to be valid base64; only a known file signature makes it a picture.
    if is_data_url or (content and _is_encoded_picture(content)):
        return BytesIO(content)
    raise FileNotFoundError(
        f"Expected the path of an existing picture, an http(s) URL or base64 data; got {_short(source)!r}, which is "
        f"no file seen from {os.getcwd()!r}. Check the spelling or pass an absolute path."
    )


def _is_encoded_picture(content: bytes) -> bool:
    try:
        Image.open(BytesIO(content)).close()
    except UnidentifiedImageError:
        return False
    except Image.DecompressionBombError:  # a picture all the same; `_decode` explains the refusal
        return True
    return True


def _decode(source: Image.Image | str | BytesIO, name: str) -> Image.Image:
    """The decoded first frame, upright. Pillow's bomb *warning* stays a warning, its bomb *error* becomes ours."""
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)  # always a copy
        with Image.open(source) as picture:
            return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"Expected a picture of a sane size; {name} was refused: {error} If you trust it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS; otherwise scale it down first."
        ) from error
    except Warning:  # someone made warnings errors: theirs to handle
        raise
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        raise ValueError(
            f"Expected a complete picture file; {name} could not be decoded: {error!r}. Check that it opens in a "
            "viewer and was fully downloaded, or save it again as PNG."
        ) from error


def _flatten(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB over white."""
    _check_sides(picture.size)
    if picture.mode.startswith("I"):
        picture = _from_16_bit(picture)
    if picture.mode == "F":
        raise ValueError(
            "Expected a picture whose values have a known range; got PIL mode 'F' (any float). Scale it to [0, 1] "
            "and pass it as a float array, or to [0, 255] and convert it to mode 'L'."
        )
    if picture.mode == "La":  # premultiplied; Pillow converts it to "LA" only
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image) -> Image.Image:
    """Greyscale "I;16*" and "I" with values in [0, 65535] -> "L"."""
    values_HW = np.asarray(picture).astype(np.int64)
    if values_HW.min() < 0 or values_HW.max() > 65535:
        raise ValueError(
            f"Expected 16-bit greyscale, values in [0, 65535]; got PIL mode {picture.mode!r} with values in "
            f"[{values_HW.min()}, {values_HW.max()}]. Scale it to [0, 255] and convert it to mode 'L'."
        )
    return Image.fromarray(((values_HW + 128) // 257).astype(np.uint8))


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """An array, checked -> "L", "RGB" or "RGBA"."""
    kind = f"{type(array).__name__} of shape {tuple(array.shape)} and dtype {array.dtype}"
    channels_first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        # numpy has no bfloat16
        array = (array.detach().float() if array.is_floating_point() else array.detach()).cpu().numpy()
    if array.ndim == 2:
        array = array[..., None]
    axes = (0, -1) if channels_first else (-1, 0)
    ends = [axis for axis in axes if array.ndim == 3 and array.shape[axis] in (1, 3, 4)]
    if not ends:
        raise ValueError(f"Expected an array {_SHAPES}; got a {kind}. Reshape it, or pass a list to give several.")
    pixels_HWC = np.moveaxis(array, ends[0], -1)
    _check_sides(pixels_HWC.shape[1::-1])
    if np.issubdtype(pixels_HWC.dtype, np.floating):
        low, high = pixels_HWC.min(), pixels_HWC.max()
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ValueError(
                f"Expected floating-point pixels in [0, 1]; got a {kind} with values in [{low}, {high}]. Divide by "
                "its maximum, undo the normalisation, or pass uint8."
            )
        pixels_HWC = np.rint(pixels_HWC.astype(np.float32) * 255).astype(np.uint8)
    if pixels_HWC.dtype != np.uint8:
        raise ValueError(f"Expected uint8, or floating point in [0, 1]; got a {kind}. Convert it to uint8.")
    return Image.fromarray(np.ascontiguousarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC))


def _check_sides(size: Sequence[int]) -> None:
    if min(size) < 1:
        raise ValueError(f"Expected a picture of at least 1x1 pixel; got {size[0]}x{size[1]} (WxH). Drop it.")


def _short(source: object) -> str:
    text = str(source)
    return text if len(text) <= 100 else f"{text[:97]}..."
