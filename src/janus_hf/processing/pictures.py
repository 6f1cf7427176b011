"""Functions that load an image from any common source as 8-bit RGB, with the colours and orientation of a viewer.

The original (deepseek-ai/Janus, `load_pil_images`) only calls `convert("RGB")`. That ignores the EXIF orientation,
turns transparent pixels into the colour stored beneath them (mostly black) and clips 16-bit greyscale to white. For
plain RGB, greyscale and palette images the result here is exactly that of the original; for the other kinds it
corrects the original.
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

from ..arguments import describe


ImageSource: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor
"""One image, in any form that `load_picture` takes."""

ImageBatch: TypeAlias = list[Image.Image] | np.ndarray | torch.Tensor
"""Images in one of the forms that `output_type` names: "pil", "np" or "pt"."""

_SOURCE_TYPES: tuple[Any, ...] = (  # Any: with the classes, a type checker would narrow to more than an `ImageSource`
    Image.Image,
    str,
    os.PathLike,
    bytes,
    bytearray,
    memoryview,
    np.ndarray,
    torch.Tensor,
)
_SOURCES = "a PIL image, a path, an http(s) URL, a base64 string, encoded bytes, or a numpy/torch array"
_HEADERS = {"User-Agent": "janus_hf"}  # many image hosts refuse Python's default user agent
_SHAPES = "(H, W), (H, W, 1|3|4) or (1|3|4, H, W)"


def load_picture(source: ImageSource) -> Image.Image:
    """Load an image from any common source as a new RGB `PIL.Image.Image`; `source` is never changed.

    EXIF orientation is applied, transparency is composited over white, 16-bit greyscale is scaled to 8 bit, and of an
    animation the first frame is used.

    Args:
        source: A PIL image of any mode but "F"; a path; an http(s) URL; a `data:` URL or bare base64 string; the bytes
            of an encoded file; or a numpy/torch array `(H, W)`, `(H, W, 1|3|4)` or `(1|3|4, H, W)`, uint8 in [0, 255]
            or floating point in [0, 1]. If both the first and the last axis of an array could be channels, numpy is
            read as channels-last and torch as channels-first, as is the custom of each library.

    Raises:
        FileNotFoundError: If `source` is a string that is neither an existing file nor a URL nor base64.
        ValueError: If `source` is no image for any other reason: undecodable or truncated data, too many pixels
            (`PIL.Image.MAX_IMAGE_PIXELS`), a side of zero pixels, values out of range, an unsupported type.
    """
    if isinstance(source, Image.Image):
        _check_sides(source.size)
        return _to_rgb(_decode(source, "the PIL image"))
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _to_rgb(_from_array(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _to_rgb(_decode(BytesIO(source), "the bytes"))
    if isinstance(source, (str, os.PathLike)):
        return _to_rgb(_decode(_locate(os.fspath(source)), f"{_short(source)!r}"))
    raise ValueError(f"`source` must be {_SOURCES}, got {type(source).__name__}: convert it to one of these.")


def flatten_images(images: Any, name: str = "images") -> list[ImageSource]:
    """Return all images in `images` as one flat list, in reading order.

    Args:
        images: One image, a 4-D array of images, `None` for no image, or any nesting of lists of these.
        name: Name of the caller's argument, for the message.

    Raises:
        TypeError: If an item cannot be an image. Whether a string or an array is one, `load_picture` finds out.
    """
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten_images(item, name)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    if not isinstance(images, _SOURCE_TYPES):
        raise TypeError(f"`{name}` must be {_SOURCES}, or a list of these, got {describe(images)}: pass the image.")
    return [images]


def _locate(source: str) -> str | BytesIO:
    """Return what Pillow can open for a string: the path of an existing file, or a buffer with an encoded image.

    A URL is downloaded into the buffer, and base64 is decoded into it.

    Raises:
        FileNotFoundError: If `source` is neither an existing file nor a URL nor base64 of an image.
        ValueError: If a URL cannot be downloaded.
    """
    if source.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(urllib.request.Request(source, headers=_HEADERS), timeout=60) as reply:
                return BytesIO(reply.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(
                f"The URL of an image must be reachable, got {error!r} from {_short(source)!r}: check the address and "
                "the network, or download the file and pass its path."
            ) from error
    if os.path.isfile(source):
        return source
    is_data_url = source.startswith("data:")
    try:
        content = base64.b64decode("".join(source.partition(",")[2 if is_data_url else 0].split()), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    # A misspelled path may happen to be valid base64, so the content must also begin like an image file.
    if is_data_url or (content and _is_encoded_image(content)):
        return BytesIO(content)
    raise FileNotFoundError(
        f"`source` must be the path of an existing image, an http(s) URL or base64 data, got {_short(source)!r}, "
        f"which is no file seen from {os.getcwd()!r}: check the spelling or pass an absolute path."
    )


def _is_encoded_image(content: bytes) -> bool:
    """Return whether `content` begins like a file of an image format that Pillow knows."""
    try:
        Image.open(BytesIO(content)).close()
    except UnidentifiedImageError:
        return False
    except Image.DecompressionBombError:  # it is an image, and `_decode` raises a ValueError for it
        return True
    return True


def _decode(source: Image.Image | str | BytesIO, name: str) -> Image.Image:
    """Return the first frame of an image, decoded and rotated by its EXIF orientation.

    Pillow warns about an image of more than `MAX_IMAGE_PIXELS`, and the caller sees this warning. At twice as many
    pixels Pillow raises `DecompressionBombError`, which becomes a `ValueError` like all other failures.

    Args:
        source: A PIL image, which may not be decoded yet, a path, or an encoded file in memory.
        name: Name of the source, for messages.
    """
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)  # returns a copy even if nothing is rotated
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"An image must not exceed Pillow's limit on pixels, got {name}: {error} If you trust it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS; otherwise scale it down first."
        ) from error
    except Warning:  # the caller has turned warnings into errors and handles them
        raise
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on damaged files
        raise ValueError(
            f"An image must be a complete file, got {name}, which could not be decoded: {error!r}. Check that it "
            "opens in a viewer and was fully downloaded, or save it again as PNG."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any PIL mode but "F" to RGB, compositing transparency over white.

    Raises:
        ValueError: If the mode is "F", whose range of values is unknown, or a side has zero pixels.
    """
    _check_sides(image.size)
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.mode == "F":
        raise ValueError(
            "An image must have values of a known range, got PIL mode 'F' (any float): scale it to [0, 1] and pass it "
            "as a float array, or to [0, 255] and convert it to mode 'L'."
        )
    if image.mode == "La":  # premultiplied alpha, which Pillow can convert to "LA" only
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale a greyscale image of PIL mode "I" or "I;16*", with values in [0, 65535], to 8 bits (mode "L").

    Raises:
        ValueError: If a value is out of this range.
    """
    values_HW = np.asarray(image).astype(np.int64)
    if values_HW.min() < 0 or values_HW.max() > 65535:
        raise ValueError(
            f"16-bit greyscale must have values in [0, 65535], got PIL mode {image.mode!r} with values in "
            f"[{values_HW.min()}, {values_HW.max()}]: scale it to [0, 255] and convert it to mode 'L'."
        )
    return Image.fromarray(((values_HW + 128) // 257).astype(np.uint8))


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Check the shape, dtype and range of a pixel array, and return it as a PIL image of mode "L", "RGB" or "RGBA"."""
    kind = f"{type(array).__name__} of shape {tuple(array.shape)} and dtype {array.dtype}"
    channels_first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        # float32 for all floating dtypes, because numpy has no bfloat16
        array = (array.detach().float() if array.is_floating_point() else array.detach()).cpu().numpy()
    if array.ndim == 2:
        array = array[..., None]
    axes = (0, -1) if channels_first else (-1, 0)
    ends = [axis for axis in axes if array.ndim == 3 and array.shape[axis] in (1, 3, 4)]
    if not ends:
        raise ValueError(
            f"An array must have the shape {_SHAPES}, got a {kind}: reshape it, or pass several images as a list."
        )
    pixels_HWC = np.moveaxis(array, ends[0], -1)
    _check_sides(pixels_HWC.shape[1::-1])
    if np.issubdtype(pixels_HWC.dtype, np.floating):
        low, high = pixels_HWC.min(), pixels_HWC.max()
        if not (low >= 0 and high <= 1):  # written so that NaN is refused too
            raise ValueError(
                f"Floating-point pixels must be in [0, 1], got a {kind} with values in [{low}, {high}]: divide by "
                "the maximum, undo the normalisation, or pass a uint8 image."
            )
        pixels_HWC = np.rint(pixels_HWC.astype(np.float32) * 255).astype(np.uint8)
    if pixels_HWC.dtype != np.uint8:
        raise ValueError(f"An array must be uint8, or floating point in [0, 1], got a {kind}: convert it to uint8.")
    return Image.fromarray(np.ascontiguousarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC))


def _check_sides(size: Sequence[int]) -> None:
    """Raise `ValueError` if an image of this size has a side of zero pixels. `size` is (width, height)."""
    if min(size) < 1:
        raise ValueError(f"An image must have at least 1x1 pixel, got {size[0]}x{size[1]} (WxH): leave it out.")


def _short(source: object) -> str:
    """Return an image source as text for a message, cut to 100 characters because base64 may be megabytes long."""
    text = str(source)
    return text if len(text) <= 100 else f"{text[:97]}..."
