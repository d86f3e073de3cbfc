"""Random batches for a recipe's needs, and prompts of given ids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlp.data.batch import Batch, DataNeeds, Prompts
from vlp.data.tokens import END, PAD, START
from vlp.recipe import Recipe


def pad_rows(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    return torch.tensor([[*row, *[PAD] * (length - len(row))] for row in rows], dtype=torch.int64).view(-1, length)


def prompts_of(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    images: Sequence[int],
    padding: int = 2,
    length: int | None = None,
    parallel: Sequence[bool] | None = None,
) -> Prompts:
    """From (prompt ids, answer ids) of each row and whose image it is about; padded by that much, or to that length."""
    sequences = [[START, *prompt, *answer, END] for prompt, answer in rows]
    return Prompts(
        pad_rows(sequences, length or max(map(len, sequences), default=1) + padding),
        torch.tensor([1 + len(prompt) for prompt, _ in rows], dtype=torch.int64),
        torch.tensor(images, dtype=torch.int64),
        None if parallel is None else torch.tensor(parallel, dtype=torch.bool),
    )


def random_batch(
    needs: DataNeeds,
    recipe: Recipe,
    images: int = 5,
    seed: int = 0,
    without: Sequence[str] = (),
    view_rows: Sequence[int] | None = None,
    first_index: int = 0,
) -> Batch:
    """A batch for `needs`: captions of uneven lengths (the first one empty), prompts whose pad column varies by task,
    every second image with views. `without` names tasks that have no sample; of those that are predicted in parallel,
    every third prompt is."""
    rng = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=rng))

    def ids(count: int) -> list[int]:
        return torch.randint(1, 60, (count,), generator=rng).tolist()  # few different ones, so that they repeat

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)

    size = recipe.model.vision.image_size
    batch = Batch(index_B=torch.arange(first_index, first_index + images), images_B3HW=pixels(images, 3, size, size))
    for request in needs.captions:
        texts = [ids(number(0, 11)) if i else [] for i in range(images * request.count)]
        rows = pad_rows([[START, *text, END] for text in texts], 16)
        batch.captions[request.name] = rows.view(images, request.count, -1)
    for place, request in enumerate(needs.tasks):
        rows, starts, heads = [], [], []
        for row in range(0 if request.task in without else images):
            prompt, answer = ids(number(1, 5)), ids(number(0, 6))
            rows.append([START, *prompt, *answer, END])
            starts.append(1 + len(prompt))
            heads.append(row)
        length = recipe.model.text.context_length if request.parallel else 16 + 8 * (place % 2)
        batch.prompts[request.name] = Prompts(
            pad_rows(rows, length),
            torch.tensor(starts, dtype=torch.int64),
            torch.tensor(heads, dtype=torch.int64),
            torch.arange(len(heads)) % 3 == 0 if request.parallel else None,
        )
    if needs.view_share:
        rows = list(range(0, images, 2) if view_rows is None else view_rows)
        views = recipe.views
        batch.view_rows_b = torch.tensor(rows, dtype=torch.int64)
        batch.global_views_bG3HW = pixels(len(rows), views.global_count, 3, views.global_size, views.global_size)
        batch.local_views_bV3HW = pixels(len(rows), views.local_count, 3, views.local_size, views.local_size)
    return batch
