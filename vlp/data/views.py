"""Pictures to model views: decoded once, cropped and resized in one step, boxes carried along."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Image.MAX_IMAGE_PIXELS = 200_000_000


@dataclass(frozen=True)
class Crop:
    """A part of the picture, edges as fractions of its width and height, origin top left."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)


def decode_image(data: bytes, size: int) -> Image.Image:
    """RGB picture, upright. JPEG is decoded at the smallest scale that still covers `size` (draft mode).

    Raises whatever Pillow raises for data that is no whole picture.
    """
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size, size))
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def random_crop(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Crop:
    """The crop of torchvision's RandomResizedCrop: area in `scale`, aspect log-uniform in (3/4, 4/3)."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return Crop(left / width, top / height, (left + w) / width, (top + h) / height)
    return center_crop(width, height)


def center_crop(width: int, height: int) -> Crop:
    """The largest centred square: what evaluation and export see."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return Crop(left / width, top / height, (left + side) / width, (top + side) / height)


def render(image: Image.Image, crop: Crop, size: int, flip: bool = False) -> np.ndarray:
    """uint8 [3, size, size]: the crop, resized bicubically, mirrored when `flip`."""
    width, height = image.size
    box = (crop.left * width, crop.top * height, crop.right * width, crop.bottom * height)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(view).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if flip else pixels)


def crop_box(box: Any, crop: Crop, least_visible: float = 0.5) -> tuple[float, float, float, float] | None:
    """`box` (fractions of the picture) in fractions of the crop.

    None when it is no box (not four finite, ordered numbers) or less than `least_visible` of it is inside.
    """
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError):
        return None
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        return None
    width, height = crop.right - crop.left, crop.bottom - crop.top
    left, right = ((min(max(x, crop.left), crop.right) - crop.left) / width for x in (x0, x1))
    top, bottom = ((min(max(y, crop.top), crop.bottom) - crop.top) / height for y in (y0, y1))
    visible = (right - left) * width * (bottom - top) * height / ((x1 - x0) * (y1 - y0))
    return (left, top, right, bottom) if visible >= least_visible else None
