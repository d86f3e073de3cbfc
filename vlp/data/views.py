"""Pictures to model views: decoded once, cropped and resized in one step, boxes carried along."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

from vlp.data.shards import BadSample
from vlp.settings import ViewSettings

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
    """RGB picture, upright, transparent parts white. JPEG is decoded at the smallest scale that still covers `size`.

    Raises `BadSample` for data that is no whole picture.
    """
    try:
        return _decode(data, size)
    except Exception:  # Pillow raises a dozen kinds for broken data, some of them by accident
        raise BadSample("undecodable_image") from None


def _decode(data: bytes, size: int) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size, size))
    image = ImageOps.exif_transpose(image)
    if image.mode == "I;16":  # a 16-bit PNG; Pillow's own conversion clips it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def random_crop(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Crop:
    """The crop of torchvision's RandomResizedCrop: area in `scale`, aspect log-uniform in (3/4, 4/3); after ten
    draws that do not fit, the largest centred one with an aspect in that range."""
    narrowest, widest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return Crop(left / width, top / height, (left + w) / width, (top + h) / height)
    return center_crop(width, height, aspect=min(max(width / height, narrowest), widest))


def center_crop(width: int, height: int, aspect: float = 1.0) -> Crop:
    """The largest centred crop of this aspect; the square is what evaluation and export see."""
    w, h = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - w) / 2, (height - h) / 2
    return Crop(left / width, top / height, (left + w) / width, (top + h) / height)


def render(image: Image.Image, crop: Crop, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the crop, resized bicubically."""
    return _pixels(_resize(image, crop, size))


def render_view(
    image: Image.Image, size: int, scale: tuple[float, float], settings: ViewSettings, rng: np.random.Generator
) -> np.ndarray:
    """uint8 [3, size, size]: a random crop, mirrored and changed in colour and sharpness as `settings` say."""
    crop = random_crop(*image.size, scale, rng)
    flip = rng.random() < settings.flip
    view = _resize(image, crop, size)
    if settings.jitter and rng.random() < settings.jitter:
        view = _jitter(view, rng)
    if settings.grayscale and rng.random() < settings.grayscale:
        view = view.convert("L").convert("RGB")
    if settings.blur and rng.random() < settings.blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    pixels = _pixels(view)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if flip else pixels


def _resize(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    width, height = image.size
    box = (crop.left * width, crop.top * height, crop.right * width, crop.bottom * height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _pixels(view: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))


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
    return (left, top, right, bottom) if visible >= least_visible else None
