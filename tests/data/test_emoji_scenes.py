"""Emoji scenes: deterministic, split by composition, and true in everything that is said about them."""

import random
import re
from itertools import chain

import numpy as np
import pytest

from vlp.data.emoji_captions import NUMBERS, captions, position, region_texts
from vlp.data.emoji_objects import BACKGROUNDS, OBJECTS, hidden, picture
from vlp.data.emoji_questions import KINDS, POOL, retrieval_questions, vqa_pairs
from vlp.data.emoji_scenes import Group, Scene, center, compose, draw, draw_mask, held_out, held_out_pairs

CLASSES = list(OBJECTS)


@pytest.fixture(scope="module")
def training() -> list[Scene]:
    return [compose(0, "train", index) for index in range(1500)]


@pytest.fixture(scope="module")
def validation() -> dict[str, Scene]:
    return {f"v{index}": compose(0, "validation", index) for index in range(400)}


def test_objects_have_pictures_and_distinct_names() -> None:
    assert 60 <= len(OBJECTS) <= 200
    assert len({kind.short_name for kind in OBJECTS.values()}) == len(OBJECTS)
    assert all(max(picture(name).size) > 40 for name in OBJECTS)
    plurals = {"sheep", "fish", "foxes", "strawberries", "buses", "monkeys", "tomatoes", "snowmen"}
    assert plurals <= {kind.plural for kind in OBJECTS.values()}


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first, again = compose(3, "train", 7), compose(3, "train", 7)
    assert first == again
    assert draw(first).tobytes() == draw(again).tobytes()
    assert captions(first, random.Random(1)) == captions(again, random.Random(1))
    others = [compose(4, "train", 7), compose(3, "train", 8), compose(3, "validation", 7)]
    assert first not in others


def test_training_never_shows_a_held_out_pair_and_validation_always_does(
    training: list[Scene], validation: dict[str, Scene]
) -> None:
    assert not any(held_out(*pair) for scene in training for pair in scene.pairs)
    assert all(any(held_out(*pair) for pair in scene.pairs) for scene in validation.values())


def test_about_a_tenth_of_each_kind_of_pair_is_held_out() -> None:
    backgrounds, objects = held_out_pairs()
    visible = sum(not hidden(name, color) for name in OBJECTS for color in BACKGROUNDS)
    assert 0.07 < len(backgrounds) / visible < 0.13
    assert 0.08 < len(objects) / (len(OBJECTS) * (len(OBJECTS) - 1) / 2) < 0.12
    assert held_out(*objects[0]) and held_out(*objects[0][::-1])


def test_training_shows_every_object_background_and_texture(training: list[Scene]) -> None:
    assert {placed.name for scene in training for placed in scene.objects} == set(OBJECTS)
    assert {scene.background.color for scene in training} == set(BACKGROUNDS)
    assert {scene.background.texture for scene in training} == {"plain", "striped", "gradient"}
    assert {len(scene.objects) for scene in training} == {1, 2, 3, 4}


def test_no_object_is_on_a_background_of_its_own_colour(training: list[Scene]) -> None:
    assert not any(
        OBJECTS[placed.name].color == scene.background.color for scene in training for placed in scene.objects
    )


def test_boxes_are_tight_on_what_is_drawn_and_masks_agree(validation: dict[str, Scene]) -> None:
    for scene in list(validation.values())[:100]:
        mask = np.asarray(draw_mask(scene, CLASSES))
        seen = np.zeros_like(mask)
        for placed in scene.objects:
            alone = Scene(scene.side, scene.background, (placed,))
            shape = np.asarray(draw_mask(alone, CLASSES)) > 0
            rows, columns = np.nonzero(shape)
            x0, y0, x1, y1 = placed.box
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
            empty = Scene(scene.side, scene.background, ())
            changed = (np.asarray(draw(alone), int) != np.asarray(draw(empty), int)).any(-1)
            assert changed[shape].mean() > 0.9
            assert not changed[:y0].any() and not changed[y1:].any()
            assert not changed[:, :x0].any() and not changed[:, x1:].any()
            assert not (seen[shape]).any(), "objects overlap"
            seen[shape] = CLASSES.index(placed.name) + 1
        assert (seen == mask).all()


def test_large_and_small_are_told_apart_by_size(training: list[Scene]) -> None:
    longest = {"large": [], "small": []}
    for placed in chain.from_iterable(scene.objects for scene in training):
        x0, y0, x1, y1 = placed.box
        longest[placed.size].append(max(x1 - x0, y1 - y0))
    assert min(longest["large"]) > 1.2 * max(longest["small"])


def test_captions_name_every_object_and_the_background(training: list[Scene]) -> None:
    for index, scene in enumerate(training[:300]):
        texts = captions(scene, random.Random(index))
        for caption in [texts["raw"], *texts["short"], *texts["long"]]:
            assert scene.background.color in caption
            for group in scene.groups:
                name = group.name if group.count == 1 else OBJECTS[group.name].plural
                assert re.search(rf"\b{name}\b", caption, re.IGNORECASE), (name, caption)
        assert len(texts["short"]) == len(set(texts["short"])) == 3
        assert len(texts["long"]) == len(set(texts["long"])) == 3


def test_long_captions_split_into_short_sentences_with_sizes_and_counts(training: list[Scene]) -> None:
    for index, scene in enumerate(training[:300]):
        texts = captions(scene, random.Random(index))
        assert all(text.endswith(".") and text.count(".") == 1 for text in texts["short"])
        for long in texts["long"]:
            sentences = [sentence.strip() for sentence in long.removesuffix(".").split(". ")]
            assert 3 <= len(sentences) <= 6
            assert all(4 <= len(sentence.split()) <= 16 and sentence[0].isupper() for sentence in sentences)
            for group in scene.groups:
                number = "a" if group.count == 1 else NUMBERS[group.count]
                assert re.search(rf"\b{number} {group.size} {group.name[:3]}", long, re.IGNORECASE), long


def test_relations_in_captions_are_true(training: list[Scene]) -> None:
    holds = {
        "to the left of": lambda a, b: max(x for x, _ in a.centers) < min(x for x, _ in b.centers),
        "to the right of": lambda a, b: min(x for x, _ in a.centers) > max(x for x, _ in b.centers),
        "above": lambda a, b: max(y for _, y in a.centers) < min(y for _, y in b.centers),
        "below": lambda a, b: min(y for _, y in a.centers) > max(y for _, y in b.centers),
    }
    checked = 0
    for index, scene in enumerate(training[:400]):
        subjects = {_definite(group).lower(): group for group in scene.groups}
        for caption in captions(scene, random.Random(index))["long"]:
            for sentence in caption.split(". "):
                found = re.match(
                    r"(The .*?) (?:is|are) (to the left of|to the right of|above|below) (the .*?)\.?$", sentence
                )
                if found:
                    first, words, second = found.groups()
                    assert holds[words](subjects[first.lower()], subjects[second.lower()]), sentence
                    checked += 1
    assert checked > 300


def test_region_phrases_fit_one_object_and_sentences_say_where_it_is(training: list[Scene]) -> None:
    for scene in training:
        texts = region_texts(scene)
        assert len({phrase for phrase, _ in texts}) == len(scene.objects)
        for placed, (phrase, sentence) in zip(scene.objects, texts, strict=True):
            assert f"{placed.size} {placed.name}" in phrase
            where = position(center(placed, scene.side))
            assert sentence == f"a {placed.size} {placed.name} {where}"
            if phrase.startswith(("left ", "right ", "top ", "bottom ")) and "center" not in phrase:
                rivals = [center(other, scene.side) for other in scene.objects if other.name == placed.name]
                x, y = center(placed, scene.side)
                extreme = {
                    "left": x == min(p[0] for p in rivals),
                    "right": x == max(p[0] for p in rivals),
                    "top": y == min(p[1] for p in rivals) or "top" in where,
                    "bottom": y == max(p[1] for p in rivals) or "bottom" in where,
                }
                assert extreme[phrase.split()[0]], phrase


def test_question_answer_pairs_are_true(training: list[Scene]) -> None:
    """Answers are worked out again from the scene, by the words of the question alone."""
    kinds = dict.fromkeys(KINDS, 0)
    for index, scene in enumerate(training[:400]):
        pairs = vqa_pairs(scene, random.Random(index))
        assert len(pairs) >= 3
        for pair in pairs:
            kinds[pair["kind"]] += 1
            assert pair["answer"] in _answers(pair["question"], scene), (pair, scene.groups)
    assert min(kinds.values()) > 200


def test_retrieval_questions_separate_positives_from_negatives(validation: dict[str, Scene]) -> None:
    questions = retrieval_questions(validation, 100, seed=0)
    kinds = [question["q_type"] for question in questions]
    assert [kinds.count(kind) for kind in KINDS] == [20] * 5
    assert len({question["question"] for question in questions}) == 100
    for question in questions:
        positives, negatives = question["pos_imgs"], question["neg_imgs"]
        assert len(set(positives + negatives)) == len(positives + negatives) == POOL
        assert 1 <= len(positives) <= 2
        for key in positives:
            assert question["answer"] in _answers(question["question"], validation[key])
        for key in negatives:
            assert not _answers(question["question"], validation[key])
    assert questions == retrieval_questions(validation, 100, seed=0)


def _definite(group: Group) -> str:
    return f"the {group.name}" if group.count == 1 else f"the {NUMBERS[group.count]} {OBJECTS[group.name].plural}"


def _answers(question: str, scene: Scene) -> set[str]:
    """Every right answer to a question about a scene; none where it asks for what the scene does not show."""
    groups = {_definite(group): group for group in scene.groups}
    kinds = {group.name: group for group in scene.groups}
    if question == "How many objects are there in the picture?":
        return {NUMBERS[len(scene.objects)]}
    if found := re.fullmatch(r"How many (animal|vehicle)s are there\?", question):
        return {NUMBERS[sum(OBJECTS[placed.name].category == found[1] for placed in scene.objects)]}
    if found := re.fullmatch(r"How many (large|small) (.+) are there\?", question):
        alike = [p for p in scene.objects if p.size == found[1] and OBJECTS[p.name].plural == found[2]]
        return {NUMBERS[len(alike)]} if alike else set()
    if question == "What color is the background?":
        return {scene.background.color}
    if question == "What texture does the background have?":
        return {scene.background.texture}
    if found := re.fullmatch(r"What (color is the background|texture is) behind (the .+)\?", question):
        answer = scene.background.color if found[1].startswith("color") else scene.background.texture
        return {answer} if found[2] in groups else set()
    if found := re.fullmatch(r"What (size|color|shape) (?:is|are) (the .+)\?", question):
        if found[2] not in groups:
            return set()
        group = groups[found[2]]
        known = OBJECTS[group.name]
        return {{"size": group.size, "color": known.color, "shape": known.shape}[found[1]]}
    if found := re.fullmatch(
        r"(?:Is|Are) (the .+) (?:to the left or to the right of|above or below) (the .+)\?", question
    ):
        if not {found[1], found[2]} <= set(groups):
            return set()
        axis = 0 if "left" in question else 1
        a, b = ([point[axis] for point in groups[found[which]].centers] for which in (1, 2))
        return (
            {("left", "above")[axis]} if max(a) < min(b) else {("right", "below")[axis]} if min(a) > max(b) else set()
        )
    found = re.fullmatch(r"What is (to the left of|to the right of|above|below) (the .+)\?", question)
    assert found, question
    if found[2] not in groups:
        return set()
    axis, sign = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}[found[1]]
    anchor = groups[found[2]]
    beyond = [
        name
        for name, group in kinds.items()
        if group != anchor and max(sign * p[axis] for p in group.centers) > min(sign * p[axis] for p in anchor.centers)
    ]
    return {name if kinds[name].count == 1 else OBJECTS[name].plural for name in beyond} if len(beyond) == 1 else set()
