"""What is said about an emoji scene: captions in several wordings, and a phrase and sentence for every object.

Everything said is true of the scene. A sentence ends with "." and contains no other full stop.
"""

import random
from collections.abc import Iterable

from vlp.data.emoji_objects import OBJECTS
from vlp.data.emoji_scenes import COLUMNS, ROWS, Background, Group, Scene, place, relation

NUMBERS = ("no", "one", "two", "three", "four")
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def captions(scene: Scene, rng: random.Random) -> dict[str, str | list[str]]:
    """`raw`, three `short` and three `long` captions; the three are phrased differently from one another."""
    groups = list(scene.groups)
    rng.shuffle(groups)
    short = (_short_objects, _short_shown, _short_background)
    long = (_long_objects, _long_overview, _long_background)
    return {
        "raw": _raw(groups, scene.background, rng),
        "short": [write(groups, scene.background, rng) for write in short],
        "long": [write(groups, scene.background, rng) for write in long],
    }


def region_texts(scene: Scene) -> list[tuple[str, str]]:
    """For each object a phrase that fits it alone, and a sentence with its place, in the order of the objects."""
    texts = []
    for group in scene.groups:
        for name, point in zip(_told_apart(group), group.centers, strict=True):
            texts.append((name, f"a {group.size} {group.name} {position(point)}"))
    return texts


# Words


def noun(group: Group) -> str:
    """The kind's name in the number of the group: "cat", "apples"."""
    return group.name if group.count == 1 else OBJECTS[group.name].plural


def definite(group: Group) -> str:
    """`the cat`, `the two apples`."""
    return f"the {noun(group)}" if group.count == 1 else f"the {NUMBERS[group.count]} {noun(group)}"


def be(group: Group) -> str:
    """The verb that agrees with the group."""
    return "is" if group.count == 1 else "are"


def position(point: tuple[float, float]) -> str:
    """Where one object is: "in the top left", "at the bottom", "on the right", "in the center"."""
    row, column = place(point)
    if row == "middle":
        return "in the center" if column == "center" else f"on the {column}"
    return f"at the {row}" if column == "center" else f"in the {row} {column}"


def _positions(group: Group) -> str:
    """Where all objects of a group are: "in the top left", "in the top left and bottom center"."""
    cells = sorted(
        {place(point) for point in group.centers}, key=lambda cell: (ROWS.index(cell[0]), COLUMNS.index(cell[1]))
    )
    return position(group.centers[0]) if len(cells) == 1 else f"in the {_listed(map(_cell, cells))}"


def _cell(cell: tuple[str, str]) -> str:
    return "center" if cell == ("middle", "center") else " ".join(cell)


def _sized(group: Group) -> str:
    """`a large cat`, `two small apples`."""
    return f"{'a' if group.count == 1 else NUMBERS[group.count]} {group.size} {noun(group)}"


def _unsized(group: Group) -> str:
    """`an apple`, `two apples`."""
    return _with_article(noun(group)) if group.count == 1 else f"{NUMBERS[group.count]} {noun(group)}"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def _listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def _sentences(*texts: str | None) -> str:
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in texts if text)


def _ground(background: Background, rng: random.Random, groups: list[Group]) -> str:
    """The background as a noun phrase; the texture is left out where three kinds make the sentence long."""
    color = background.color
    if len(groups) == 3:
        return _with_article(f"{color} background")
    wordings = {
        "plain": (f"plain {color} background", f"solid {color} background"),
        "striped": (f"{color} striped background", f"{color} background with stripes"),
        "gradient": (f"{color} gradient background", f"{color} background with a gradient"),
    }
    return _with_article(rng.choice(wordings[background.texture]))


# Raw and short captions


def _raw(groups: list[Group], background: Background, rng: random.Random) -> str:
    names = [noun(group) if group.count == 1 else f"{group.count} {noun(group)}" for group in groups]
    things = rng.choice((_listed, ", ".join))(names)
    return rng.choice(
        (
            f"{things}, {background.color}",
            f"{things} on {background.color}",
            f"{things}, {background.color} background",
            f"{things}, {background.texture} {background.color}",
        )
    )


def _short_objects(groups: list[Group], background: Background, rng: random.Random) -> str:
    """All objects with their sizes, then the background."""
    things = _listed(_sized(group) for group in groups)
    return _sentences(f"{things} {rng.choice(('on', 'against', 'in front of'))} {_ground(background, rng, groups)}")


def _short_shown(groups: list[Group], background: Background, rng: random.Random) -> str:
    """That it is a picture, what it shows, then the background."""
    things = _listed(_unsized(group) for group in groups[::-1])
    opening = rng.choice(("a picture of", "an image of", "this picture shows", "this image shows"))
    return _sentences(f"{opening} {things} on {_ground(background, rng, groups)}")


def _short_background(groups: list[Group], background: Background, rng: random.Random) -> str:
    """The background, then all objects."""
    ground, things = _ground(background, rng, groups), _listed(_unsized(group) for group in groups)
    if rng.random() < 0.5:
        return _sentences(f"{ground} behind {things}")
    return _sentences(f"on {ground} there {be(groups[0])} {things}")


# Long captions


def _long_objects(groups: list[Group], background: Background, rng: random.Random) -> str:
    """Every object and its place, the background, a relation."""
    objects = [f"{_sized(group)} {be(group)} {_positions(group)}" for group in groups]
    color = background.color
    ground = {
        "plain": f"is plain {color}",
        "striped": f"has {color} stripes",
        "gradient": f"is {_with_article(color)} gradient",
    }
    last = _related(groups) or _inner(groups[0])
    return _sentences(*objects, f"the background {ground[background.texture]}", last)


def _long_overview(groups: list[Group], background: Background, rng: random.Random) -> str:
    """The number of objects, every place and what is there, the background, a relation read from the other side."""
    total = sum(group.count for group in groups)
    overview = "is one object" if total == 1 else f"are {NUMBERS[total]} objects"
    objects = [f"{_positions(group)} {be(group)} {_sized(group)}" for group in groups[::-1]]
    ground = f"{'it is' if total == 1 else 'they are'} shown on {_ground(background, rng, groups[:1])}"
    return _sentences(f"there {overview} in the picture", *objects, ground, _related(groups[::-1]))


def _long_background(groups: list[Group], background: Background, rng: random.Random) -> str:
    """The background, every object, how two sizes compare."""
    verb = rng.choice(("can be seen", "can be found"))
    objects = [f"{_sized(group)} {verb} {_positions(group)}" for group in groups]
    last = _compared(*groups[:2]) if len(groups) > 1 else _same_kind(groups[0])
    return _sentences(f"{_ground(background, rng, groups[:1])} fills the picture", *objects, last)


def _related(groups: list[Group]) -> str | None:
    """`the cat is to the left of the bus`, of the first two groups that lie clearly so."""
    for index, a in enumerate(groups):
        for b in groups[index + 1 :]:
            if side := relation(a, b):
                return f"{definite(a)} {be(a)} {RELATIONS[side]} {definite(b)}"
    return None


def _compared(a: Group, b: Group) -> str:
    if a.size == b.size:
        return f"{definite(a)} and {definite(b)} are equally {a.size}"
    return f"{definite(a)} {be(a)} {'larger' if a.size == 'large' else 'smaller'} than {definite(b)}"


def _inner(group: Group) -> str:
    """What to say where no two kinds lie clearly: the relation of the two objects of one kind, if there are two."""
    if group.count == 2:
        (x0, y0), (x1, y1) = group.centers
        return f"one {group.name} is {'to the left of' if x1 - x0 >= abs(y1 - y0) else 'above'} the other"
    return "there is nothing else in the picture"


def _same_kind(group: Group) -> str:
    if group.count == 1:
        return f"it is the only object and it is {group.size}"
    return f"{definite(group)} are about the same size"


# Regions


def _told_apart(group: Group) -> list[str]:
    """A phrase for each object of the group that fits no other: "large cat", "left small apple"."""
    what = f"{group.size} {group.name}"
    if group.count == 1:
        return [what]
    if group.count == 2:
        (x0, y0), (x1, y1) = group.centers
        if x1 - x0 >= abs(y1 - y0):
            return [f"left {what}", f"right {what}"]
        return [f"top {what}", f"bottom {what}"] if y0 < y1 else [f"bottom {what}", f"top {what}"]
    cells = [place(point) for point in group.centers]
    if len(set(cells)) == group.count:
        return [f"{_cell(cell)} {what}" for cell in cells]
    return [f"{ordinal} {what} from the left" for ordinal in ("first", "second", "third")]
