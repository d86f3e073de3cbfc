"""Batches for a recipe without its data: scenes of the demo set, made here, through the loader's own functions.

They have what the recipe reads: its caption kinds and tasks under its field names, its views, and of a task or of the
views that only a share of the images has, exactly that share.
"""

import json
import math
import random
from fractions import Fraction
from itertools import count

import numpy as np

from vlp.data.batch import Batch, DataNeeds
from vlp.data.emoji_scenes import compose
from vlp.data.emoji_shards import sample
from vlp.data.sample import Sample, collate, make_sample
from vlp.data.tokens import END, START
from vlp.errors import UserError
from vlp.models.text import GROUPS
from vlp.recipe import Recipe

MOST_IMAGES = 64


class SyntheticImages:
    """A few images that stand for the recipe's data: `batch(n)` repeats them n times."""

    def __init__(self, recipe: Recipe, needs: DataNeeds, tokens: int | None = None):
        """`tokens`: the length of every caption, start and end token included; the demo set's lengths when None."""
        context = recipe.model.text.context_length
        if tokens is not None and not 3 <= tokens <= context:
            raise UserError(f"--tokens {tokens}: allowed are 3 to model.text.context_length={context}")
        self.recipe, self.needs = recipe, needs
        numbers = count()
        self.samples = [self._sample(turn, numbers, tokens) for turn in range(images_for_shares(needs))]

    def batch(self, times: int) -> Batch:
        """Every image `times` times. Their numbers stay below the recipe's batch size, where that is smaller."""
        samples = self.samples * times
        index = [i % self.recipe.train.batch_size for i in range(len(samples))]
        return collate(samples, index, self.needs, self.recipe)

    def _sample(self, turn: int, numbers: count, tokens: int | None) -> Sample:
        """The next scene that has something for every task whose turn it is."""
        for _ in range(20):
            number = next(numbers)
            made = make_sample(self._raw(number), self.needs, self.recipe, turn, np.random.default_rng(number))
            if not made.missing:
                break
        if tokens is not None:
            ids = [START, *[1] * (tokens - 2), END]
            made.captions = {name: [ids] * len(texts) for name, texts in made.captions.items()}
        return made

    def _raw(self, number: int) -> dict[str, bytes]:
        """A scene's files, its annotations under the recipe's own field names."""
        files = sample(compose(0, "train", number), random.Random(number), with_mask=False)
        content = json.loads(files["json"])
        annotations = {}
        for field, names in self.recipe.data.fields.model_dump().items():
            for name in [names] if isinstance(names, str) else names or []:
                annotations[name] = content[field]
        return {"__key__": str(number), "jpg": files["jpg"], "json": json.dumps(annotations).encode()}


def images_for_shares(needs: DataNeeds) -> int:
    """The fewest images of which every share is a whole number, and that fill the text tower's groups evenly; at most
    `MOST_IMAGES`, or what the smallest share needs."""
    tasks = [Fraction(task.share).limit_denominator(1000) for task in needs.tasks]
    views = Fraction(needs.view_share).limit_denominator(1000)
    for images in range(GROUPS, MOST_IMAGES + 1, GROUPS):
        rows = [share * images for share in (*tasks, views)]
        if all(count.denominator == 1 for count in rows) and sum(rows[:-1]) % GROUPS == 0:
            return images
    smallest = min(share for share in (*tasks, views) if share)
    return max(MOST_IMAGES, GROUPS * math.ceil(1 / (smallest * GROUPS)))
