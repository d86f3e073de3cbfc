"""A look at the first samples before training: which fields they have, and what was drawn of one."""

from collections import Counter
from itertools import chain, islice

import numpy as np

from vlp.data.captions import read_captions, sample_captions
from vlp.data.prompts import make_prompt
from vlp.data.shards import BadSample, image_bytes, read_annotations, read_shard, top_reasons
from vlp.data.sources import expand_shards, training_shards
from vlp.data.views import WHOLE
from vlp.engine.monitor import console
from vlp.errors import UserError
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe

MAKERS = {"regions": "tools/prepare_regions.py", "vqa": "tools/prepare_vqa.py"}


def preview(recipe: Recipe, samples: int = 64) -> None:
    """Print how many of the first samples serve each caption kind and task, and one drawn text of each: wrongly
    split captions are easiest seen here.

    Raises:
        UserError: when none of the samples can be used or has what an objective reads, or the shards do not fit.
    """
    needs, data = graph_needs(recipe).data, recipe.data
    shards = training_shards(recipe)
    if data.validation is not None:
        expand_shards(data.validation, data.cache)
    rng = np.random.default_rng(recipe.train.seed)
    fields = {r.name: r.fields[-1] for r in needs.captions} | {r.name: r.field for r in needs.tasks}
    found: dict[str, list[str]] = {name: [] for name in fields}
    looked, skipped = 0, Counter()
    for raw in islice(chain.from_iterable(map(read_shard, shards)), samples):
        looked += 1
        try:
            image_bytes(raw)
            annotations = read_annotations(raw)
        except BadSample as reason:
            skipped[str(reason)] += 1
            continue
        captions = read_captions(annotations, data.fields)
        for request in needs.captions:
            found[request.name] += sample_captions(captions, request, rng)[:1]
        for request in needs.tasks:
            size = recipe.model.vision.image_size
            prompt = make_prompt(request, captions, annotations, WHOLE, size, data, rng)
            found[request.name] += [" -> ".join(prompt)] if prompt else []
    if looked == skipped.total():
        reasons = top_reasons(skipped) or "the shards are empty"
        raise UserError(f"data.train: {data.train}: none of the first {looked} samples can be used: {reasons}")
    console.print(f"{len(shards)} training shards; of the first {looked} samples:")
    for name, texts in found.items():
        if not texts:
            field = fields[name]
            hint = "" if field in MAKERS else "; with captions: any an objective reads all kinds"
            raise UserError(
                f"data.train: none of the first {looked} samples of {data.train} has the field '{field}' that "
                f"'{name}' reads; add it by {MAKERS.get(field, 'tools/prepare_captions.py')}, or name in "
                f"data.fields.{field} the key that has it{hint}"
            )
        console.print(f"  {name}: {len(texts)} have it, e.g. {texts[0]!r}", soft_wrap=True)
