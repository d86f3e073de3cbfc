"""Emoji scenes: what one holds (from a seed), which pairs training never sees, and how it is drawn."""

import hashlib
import math
import random
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
from PIL import Image, ImageOps

from vlp.data.emoji_objects import BACKGROUNDS, OBJECTS, OPAQUE, hidden, picture

SIZES = {"large": 0.42, "small": 0.27}
"""An object's longest side as a fraction of the picture's side."""

TEXTURES = ("plain", "striped", "gradient")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
MOST_OBJECTS = 4
MOST_OVERLAP = 0.1
"""Largest IoU of two objects' boxes; their pixels never overlap."""

CLEAR_GAP = 0.12
"""Smallest distance of centers, as a fraction of the side, for which one object is said to be left of another."""


@dataclass(frozen=True)
class Background:
    """A colour of `BACKGROUNDS`, a texture of `TEXTURES`, and how the texture lies."""

    color: str
    texture: str
    angle: float
    stripe: float
    brightness: float


@dataclass(frozen=True)
class Look:
    """How one object's picture is turned into pixels."""

    longest: int
    angle: int
    mirrored: bool
    gains: tuple[float, float, float]


@dataclass(frozen=True)
class Placed:
    """One object in a scene; the box x0, y0, x1, y1 in pixels is tight on what is drawn."""

    name: str
    size: str
    look: Look
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Group:
    """All objects of one kind in a scene; they share their size, and are ordered from left to right."""

    name: str
    size: str
    centers: tuple[tuple[float, float], ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.centers)


@dataclass(frozen=True)
class Scene:
    """A background and one to four objects on a square picture of `side` pixels."""

    side: int
    background: Background
    objects: tuple[Placed, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The objects by kind, in the order of the objects."""
        names = dict.fromkeys(placed.name for placed in self.objects)
        return tuple(
            Group(name, members[0].size, tuple(center(member, self.side) for member in members))
            for name in names
            for members in [[placed for placed in self.objects if placed.name == name]]
        )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every object-background and object-object pair that the scene shows."""
        names = sorted({placed.name for placed in self.objects})
        return [(name, self.background.color) for name in names] + list(combinations(names, 2))


def center(placed: Placed, side: int) -> tuple[float, float]:
    """The middle of the object's box, as fractions of the side."""
    x0, y0, x1, y1 = placed.box
    return (x0 + x1) / 2 / side, (y0 + y1) / 2 / side


def place(point: tuple[float, float]) -> tuple[str, str]:
    """The row and column of a point on a 3 x 3 grid: ("top", "left"), ("middle", "center"), ..."""
    x, y = ((value > 0.38) + (value > 0.62) for value in point)
    return ROWS[y], COLUMNS[x]


def relation(a: Group, b: Group) -> str | None:
    """Where all of `a` is as seen from all of `b`: left, right, above or below; None where neither is clear."""
    (ax, ay), (bx, by) = zip(*a.centers, strict=True), zip(*b.centers, strict=True)
    gaps = {
        "left": min(bx) - max(ax),
        "right": min(ax) - max(bx),
        "above": min(by) - max(ay),
        "below": min(ay) - max(by),
    }
    best = max(gaps, key=gaps.__getitem__)
    return best if gaps[best] >= CLEAR_GAP else None


# The compositional split


@cache
def held_out(first: str, second: str) -> bool:
    """Whether training never shows this object with this background colour, or these two objects together.

    A fixed tenth of all pairs, whatever the seed of the set.
    """
    key = "|".join(sorted((first, second))) if second in OBJECTS else f"{first} on {second}"
    return hashlib.sha256(f"vlp emoji scenes: {key}".encode()).digest()[0] < 26


def held_out_pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The held-out object-background pairs (those that can be seen) and object-object pairs."""
    backgrounds = [pair for pair in product(OBJECTS, BACKGROUNDS) if held_out(*pair) and not hidden(*pair)]
    return backgrounds, [pair for pair in combinations(sorted(OBJECTS), 2) if held_out(*pair)]


# Composition


def compose(seed: int, split: str, index: int, side: int = 128) -> Scene:
    """Scene `index` of a split, `train` or `validation`.

    No scene of `train` shows a held-out pair; every scene of `validation` shows at least one.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        counts = _counts(rng)
        names, color = _kinds(rng, len(counts), split)
        sizes = [rng.choice(list(SIZES)) for _ in counts]
        if sum(count for count, size in zip(counts, sizes, strict=True) if size == "large") > 3:
            sizes[-1] = "small"
        wanted = [(n, s) for n, s, c in zip(names, sizes, counts, strict=True) for _ in range(c)]
        background = Background(
            color, rng.choice(TEXTURES), rng.uniform(0, math.pi), side * rng.uniform(0.06, 0.1), rng.uniform(0.95, 1.03)
        )
        for _ in range(20):
            if objects := _arrange(rng, wanted, side):
                order = sorted(objects, key=lambda placed: (names.index(placed.name), center(placed, side)))
                return Scene(side, background, tuple(order))


def _counts(rng: random.Random) -> list[int]:
    """How many objects there are of each of one to three kinds."""
    (kinds,) = rng.choices((1, 2, 3), (0.15, 0.5, 0.35))
    counts = [1] * kinds
    for group in range(kinds):
        while sum(counts) < MOST_OBJECTS and counts[group] < 3 and rng.random() < 0.35:
            counts[group] += 1
    rng.shuffle(counts)
    return counts


def _kinds(rng: random.Random, number: int, split: str) -> tuple[list[str], str]:
    """Object names and a background colour that can be seen together and belong to the split."""
    while True:
        names, color = rng.sample(list(OBJECTS), number), rng.choice(list(BACKGROUNDS))
        if any(hidden(name, color) for name in names):
            continue
        unseen = any(held_out(name, color) for name in names) or any(held_out(*pair) for pair in combinations(names, 2))
        if unseen == (split == "validation"):
            return names, color


def _arrange(rng: random.Random, wanted: list[tuple[str, str]], side: int) -> list[Placed] | None:
    """Random places for the objects, largest first, so that no pixels overlap; None where one finds no room."""
    occupied = np.zeros((side, side), dtype=bool)
    placed = []
    for name, size in sorted(wanted, key=lambda item: -SIZES[item[1]]):
        longest = round(side * SIZES[size] * rng.choice((0.94, 1.0, 1.06)))
        gains = tuple(rng.uniform(0.92, 1.06) for _ in range(3))
        look = Look(longest, rng.choice((-12, -6, 0, 6, 12)), rng.random() < 0.5, gains)
        _, shape = _cutout(name, look.longest, look.angle, look.mirrored)
        height, width = shape.shape
        for _ in range(30):
            x, y = rng.randrange(side - width + 1), rng.randrange(side - height + 1)
            box = (x, y, x + width, y + height)
            free = not (occupied[y : y + height, x : x + width] & shape).any()
            if free and all(_iou(box, other.box) <= MOST_OVERLAP for other in placed):
                occupied[y : y + height, x : x + width] |= shape
                placed.append(Placed(name, size, look, box))
                break
        else:
            return None
    return placed


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# Drawing


@cache
def _cutout(name: str, longest: int, angle: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """The object's pixels, [H, W, 4] uint8, and which of them belong to it, [H, W] bool; cut tightly."""
    image = ImageOps.mirror(picture(name)) if mirrored else picture(name)
    image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE)).getbbox())
    scale = longest / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
    pixels = np.asarray(image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE)).getbbox()))
    return pixels, pixels[..., 3] >= OPAQUE


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB."""
    image = Image.fromarray(_draw_background(scene.background, scene.side))
    for placed in scene.objects:
        look = placed.look
        pixels, _ = _cutout(placed.name, look.longest, look.angle, look.mirrored)
        tinted = np.minimum(pixels * np.float32((*look.gains, 1)), 255).astype(np.uint8)
        cutout = Image.fromarray(tinted)
        image.paste(cutout, placed.box[:2], cutout)
    return image


def draw_mask(scene: Scene, classes: list[str]) -> Image.Image:
    """The class of every pixel, 8 bit: 0 for the background, i + 1 for `classes[i]`."""
    mask = np.zeros((scene.side, scene.side), dtype=np.uint8)
    for placed in scene.objects:
        look = placed.look
        _, shape = _cutout(placed.name, look.longest, look.angle, look.mirrored)
        x0, y0, x1, y1 = placed.box
        mask[y0:y1, x0:x1][shape] = classes.index(placed.name) + 1
    return Image.fromarray(mask)


def _draw_background(background: Background, side: int) -> np.ndarray:
    """[side, side, 3] uint8."""
    first, second = (np.float32(shade) * background.brightness for shade in BACKGROUNDS[background.color])
    ramp = np.arange(side, dtype=np.float32) - side / 2
    along = ramp * math.cos(background.angle) + (ramp * math.sin(background.angle))[:, None]
    match background.texture:
        case "plain":
            amount = np.zeros_like(along)
        case "striped":
            amount = (along // background.stripe) % 2
        case "gradient":
            amount = 1.7 * (along - along.min()) / (along.max() - along.min()) - 0.5
    return np.clip(first + amount[..., None] * (second - first), 0, 255).astype(np.uint8)
