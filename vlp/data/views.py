"""Pictures to model views: decoded once, cropped and resized in one step, boxes carried along."""

import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch.nn.functional import interpolate
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

from vlp.data.shards import BadSample
from vlp.settings import ViewSettings

MAX_PIXELS = 128 * 2**20
"""Of a decoded picture, 400 MB: more is a decompression bomb."""


@dataclass(frozen=True)
class Crop:
    """A part of the picture, edges as fractions of its width and height, origin top left; `mirrored` left to right."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)


def decode_image(data: bytes, size: int) -> Image.Image:
    """RGB picture, upright, transparent parts white. JPEG is decoded at the smallest scale that still covers `size`.

    Raises `BadSample` for data that is no whole picture, or one of more than `MAX_PIXELS`.
    """
    try:
        return _decode(data, size)
    except BadSample:
        raise
    except Exception:  # Pillow raises a dozen kinds for broken data, some of them by accident
        raise BadSample("undecodable_image") from None


def _decode(data: bytes, size: int) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size, size))
    if image.width * image.height > MAX_PIXELS:
        raise BadSample("image_too_large")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "I;16":  # a 16-bit PNG; Pillow's own conversion clips it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image


def random_crop(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Crop:
    """The crop of torchvision's RandomResizedCrop: area in `scale`, aspect log-uniform in (3/4, 4/3), whole pixels;
    after ten draws that do not fit, the largest centred one with an aspect in that range."""
    narrowest, widest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
        w, h = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if w <= width and h <= height:
            left, top = rng.integers(0, width - w, endpoint=True), rng.integers(0, height - h, endpoint=True)
            return Crop(left / width, top / height, (left + w) / width, (top + h) / height)
    return center_crop(width, height, aspect=min(max(width / height, narrowest), widest))


def center_crop(width: int, height: int, aspect: float = 1.0) -> Crop:
    """The largest centred crop of this aspect, in whole pixels; the square is what evaluation and export see."""
    w, h = max(1, round(min(width, height * aspect))), max(1, round(min(height, width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return Crop(left / width, top / height, (left + w) / width, (top + h) / height)


def render(image: Image.Image | np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the crop, resized bicubically with antialiasing.

    By torch's kernel for uint8, which equals Pillow's to rounding and is several times faster. Where several views are
    drawn of a picture, hand in its pixels, uint8 [height, width, 3].
    """
    pixels = image if isinstance(image, np.ndarray) else np.array(image)
    height, width = pixels.shape[:2]
    rows = slice(round(crop.top * height), round(crop.bottom * height))
    columns = slice(round(crop.left * width), round(crop.right * width))
    part = torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1)[None]
    view = interpolate(part, (size, size), mode="bicubic", antialias=True)[0]
    return (view.flip(2) if crop.mirrored else view).contiguous().numpy()


def render_view(
    image: Image.Image | np.ndarray,
    size: int,
    scale: tuple[float, float],
    settings: ViewSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """uint8 [3, size, size]: a random crop, mirrored and changed in colour and sharpness as `settings` say."""
    height, width = np.shape(image)[:2]
    crop = random_crop(width, height, scale, rng)
    crop = replace(crop, mirrored=rng.random() < settings.flip)
    pixels = render(image, crop, size)
    changes = [
        (settings.jitter, lambda view: _jitter(view, rng)),
        (settings.grayscale, lambda view: view.convert("L").convert("RGB")),
        (settings.blur, lambda view: view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))),
    ]
    for probability, change in changes:
        if probability and rng.random() < probability:
            view = change(Image.fromarray(pixels.transpose(1, 2, 0)))
            pixels = np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))
    return pixels


def _jitter(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """SimCLR's colour jitter as SLIP has it: brightness, contrast, saturation by 0.6 to 1.4, hue by -0.1 to 0.1."""
    changes = [
        (adjust_brightness, rng.uniform(0.6, 1.4)),
        (adjust_contrast, rng.uniform(0.6, 1.4)),
        (adjust_saturation, rng.uniform(0.6, 1.4)),
        (adjust_hue, rng.uniform(-0.1, 0.1)),
    ]
    for i in rng.permutation(len(changes)):
        change, amount = changes[i]
        view = change(view, amount)
    return view


def crop_box(box: Any, crop: Crop, least_visible: float = 0.5) -> tuple[float, float, float, float] | None:
    """`box` (fractions of the picture) in fractions of the crop.

    None when it is no box (not four finite, ordered numbers) or less than `least_visible` of it is inside.
    """
    if not isinstance(box, (list, tuple)) or [type(edge) in (int, float) for edge in box] != [True] * 4:
        return None
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        return None
    width, height = crop.right - crop.left, crop.bottom - crop.top
    left, right = ((min(max(x, crop.left), crop.right) - crop.left) / width for x in (x0, x1))
    top, bottom = ((min(max(y, crop.top), crop.bottom) - crop.top) / height for y in (y0, y1))
    visible = (right - left) * width / (x1 - x0) * ((bottom - top) * height / (y1 - y0))
    if crop.mirrored:
        left, right = 1 - right, 1 - left
    return (left, top, right, bottom) if visible >= least_visible else None
