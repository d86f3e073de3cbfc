"""Questions about emoji scenes: question-answer pairs for one, and question retrieval over many.

Both are of five kinds: count, color, attribute, shape, relation.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

from vlp.data.emoji_captions import NUMBERS, RELATIONS, be, definite, noun
from vlp.data.emoji_objects import OBJECTS
from vlp.data.emoji_scenes import Group, Scene, relation

KINDS = ("count", "color", "attribute", "shape", "relation")
PAIRS_A_KIND = 2
POOL = 25
"""Pictures that a retrieval question chooses among: two positives, the rest negatives."""


@dataclass(frozen=True)
class Question:
    """A question, its short answer, and the objects that it presupposes."""

    kind: str
    text: str
    answer: str
    about: frozenset[str] = frozenset()


def vqa_pairs(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """At most two pairs of each kind that apply to the scene."""
    questions = [*_general_questions(scene), *_object_questions(scene)]
    rng.shuffle(questions)
    return [
        {"question": question.text, "answer": question.answer, "kind": kind}
        for kind in KINDS
        for question in [question for question in questions if question.kind == kind][:PAIRS_A_KIND]
    ]


def retrieval_questions(scenes: Mapping[str, Scene], number: int, seed: int) -> list[dict[str, str | list[str]]]:
    """Questions to retrieve scenes by, as in RetVQA, with the kinds in equal shares as far as the scenes allow.

    The positives show all that the question presupposes and give the same answer; each negative lacks at least one
    of the objects it is about. A question has two positives where two scenes qualify, else one.
    """
    rng = random.Random(f"questions/{seed}")
    asked: dict[Question, list[str]] = defaultdict(list)
    shown = {key: {group.name for group in scene.groups} for key, scene in scenes.items()}
    for key, scene in scenes.items():
        for question in _object_questions(scene):
            asked[question].append(key)
    chosen = []
    for kind in KINDS:
        candidates = [question for question in asked if question.kind == kind]
        rng.shuffle(candidates)
        candidates.sort(key=lambda question: len(asked[question]) < 2)
        different = {question.text: question for question in reversed(candidates)}
        chosen += list(different.values())[::-1][: number // len(KINDS)]
    return [_with_pool(question, asked[question], shown, rng) for question in chosen]


def _with_pool(
    question: Question, matching: list[str], shown: Mapping[str, set[str]], rng: random.Random
) -> dict[str, str | list[str]]:
    positives = rng.sample(matching, min(2, len(matching)))
    lacking = [key for key, names in shown.items() if not question.about <= names]
    negatives = rng.sample(lacking, min(POOL - len(positives), len(lacking)))
    return {
        "question": question.text,
        "answer": question.answer,
        "q_type": question.kind,
        "pos_imgs": positives,
        "neg_imgs": negatives,
    }


def _general_questions(scene: Scene) -> Iterator[Question]:
    """Questions that can be asked about any scene, or any that shows an animal or a vehicle."""
    yield Question("count", "How many objects are there in the picture?", NUMBERS[len(scene.objects)])
    for category in ("animal", "vehicle"):
        if total := sum(group.count for group in scene.groups if OBJECTS[group.name].category == category):
            yield Question("count", f"How many {category}s are there?", NUMBERS[total])
    yield Question("color", "What color is the background?", scene.background.color)
    yield Question("attribute", "What texture does the background have?", scene.background.texture)


def _object_questions(scene: Scene) -> Iterator[Question]:
    """Questions that presuppose the scene's objects."""
    for group in scene.groups:
        kind, about, the, verb = OBJECTS[group.name], frozenset({group.name}), definite(group), be(group)
        yield Question("count", f"How many {group.size} {kind.plural} are there?", NUMBERS[group.count], about)
        yield Question("color", f"What color is the background behind {the}?", scene.background.color, about)
        yield Question("attribute", f"What size {verb} {the}?", group.size, about)
        yield Question("attribute", f"What texture is behind {the}?", scene.background.texture, about)
        if kind.color:
            yield Question("color", f"What color {verb} {the}?", kind.color, about)
        if kind.shape:
            yield Question("shape", f"What shape {verb} {the}?", kind.shape, about)
    for a, b in permutations(scene.groups, 2):
        yield from _relation_questions(a, b, scene)


def _relation_questions(a: Group, b: Group, scene: Scene) -> Iterator[Question]:
    side, about = relation(a, b), frozenset({a.name, b.name})
    if not side:
        return
    choice = "to the left or to the right of" if side in ("left", "right") else "above or below"
    yield Question("relation", f"{be(a).capitalize()} {definite(a)} {choice} {definite(b)}?", side, about)
    if not any(_reaches(other, side, b) for other in scene.groups if other not in (a, b)):
        yield Question("relation", f"What is {RELATIONS[side]} {definite(b)}?", noun(a), frozenset({b.name}))


def _reaches(other: Group, side: str, b: Group) -> bool:
    """Whether any object of `other` could be said to be on that side of some object of `b`."""
    axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[side]
    return max(sign * point[axis] for point in other.centers) > min(sign * point[axis] for point in b.centers)
