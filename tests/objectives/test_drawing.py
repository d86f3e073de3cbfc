"""Draws depend on (seed, step, image, other image) and on nothing else, and are uniform."""

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from vlp.objectives.drawing import draw_caption, draw_others, draw_patches, hash_pairs
from vlp.objectives.text_conditioned import meet_captions

numbers = st.integers(0, 2**40)


@over(seed=numbers, step=numbers, first=numbers, second=numbers, captions=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_draws_are_in_range_and_repeat(seed: int, step: int, first: int, second: int, captions: int) -> None:
    images, others = torch.tensor([first]), torch.tensor([second, first, second + 1])
    drawn = draw_caption(seed, step, images, others, captions)
    assert drawn.shape == (1, 3)
    assert ((drawn >= 0) & (drawn < captions)).all()
    assert torch.equal(drawn, draw_caption(seed, step, images, others, captions))
    assert (hash_pairs(seed, step, images, others) >= 0).all()


def test_draws_change_with_seed_step_and_either_image() -> None:
    images, others = torch.arange(40), torch.arange(100, 140)
    base = draw_caption(1, 5, images, others, 1000)
    changed = {
        "seed": draw_caption(2, 5, images, others, 1000),
        "step": draw_caption(1, 6, images, others, 1000),
        "image": draw_caption(1, 5, images + 1, others, 1000),
        "other": draw_caption(1, 5, images, others + 1, 1000),
        "swapped": draw_caption(1, 5, others, images, 1000).T,
    }
    for what, drawn in changed.items():
        assert (drawn == base).double().mean() < 0.01, what
    assert (base[1:] == base[:-1]).double().mean() < 0.01  # two images do not share their draws
    assert (base[:, 1:] == base[:, :-1]).double().mean() < 0.01


@pytest.mark.parametrize("captions", [2, 3, 8])
def test_caption_draws_are_uniform(captions: int) -> None:
    """Chi-square of the cells (value), and of pairs of neighbouring draws; bounds at about five standard deviations."""
    images = torch.arange(300)
    drawn = draw_caption(0, 17, images, images, captions)
    neighbours = drawn[:, :-1:2] * captions + drawn[:, 1::2]
    over_steps = torch.stack([draw_caption(0, step, images[:20], images[:20], captions) for step in range(100)])
    for values, cells in [(drawn, captions), (neighbours, captions**2), (over_steps, captions)]:
        counts = torch.bincount(values.flatten(), minlength=cells).double()
        expected = counts.sum() / cells
        chi_square = ((counts - expected) ** 2 / expected).sum()
        freedom = cells - 1
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


@over(images=st.integers(1, 9), count=st.integers(0, 12), seed=numbers, step=numbers)
@settings(max_examples=60, deadline=None)
def test_others_are_different_and_never_the_image_itself(images: int, count: int, seed: int, step: int) -> None:
    index = torch.randperm(images, generator=torch.Generator().manual_seed(seed % 1000)) * 3 + 1
    places = draw_others(seed, step, index, index, count)
    assert places.shape == (images, min(count, images - 1))
    for row in range(images):
        chosen = places[row].tolist()
        assert row not in chosen
        assert len(set(chosen)) == len(chosen)


def test_others_are_uniform() -> None:
    index = torch.arange(12)
    counts = torch.zeros(12, 12, dtype=torch.float64)
    steps, count = 3000, 4
    for step in range(steps):
        counts.scatter_add_(1, draw_others(3, step, index, index, count), torch.ones(12, count, dtype=torch.float64))
    expected = steps * count / 11
    off_diagonal = counts[~torch.eye(12, dtype=torch.bool)]
    assert counts.diagonal().sum() == 0
    chi_square = ((off_diagonal - expected) ** 2 / expected).sum()
    freedom = 12 * 10
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_draws_do_not_depend_on_split_or_order() -> None:
    """Any rank's rows, and any order of the gathered images, give each image the same captions of the same others."""
    index, captions, count = torch.tensor([7, 3, 11, 0, 5, 2, 9]), 4, 3
    shuffled = index[torch.tensor([4, 2, 6, 0, 1, 5, 3])]

    def seen(own: torch.Tensor, everywhere: torch.Tensor) -> dict[int, tuple[set, set]]:
        met, positive = meet_captions(own, everywhere, captions, seed=5, step=2)
        others = draw_others(5, 2, own, everywhere, count)
        return {
            int(image): (
                {(int(everywhere[m // captions]), int(m % captions), bool(p)) for m, p in zip(*pair, strict=True)},
                set(everywhere[chosen].tolist()),
            )
            for image, pair, chosen in zip(own, zip(met, positive, strict=True), others, strict=True)
        }

    whole = seen(index, index)
    parts = seen(index[:3], index) | seen(index[3:4], index) | seen(index[4:], shuffled)
    assert whole == parts == seen(shuffled, shuffled)


@pytest.mark.parametrize(("images", "captions"), [(1, 1), (1, 5), (6, 1), (5, 3)])
def test_each_image_meets_its_own_captions_and_one_of_every_other(images: int, captions: int) -> None:
    index = torch.arange(images) * 2 + 1
    met, positive = meet_captions(index, index, captions, seed=1, step=4)
    drawn = draw_caption(1, 4, index, index, captions)
    assert met.shape == positive.shape == (images, images + captions - 1)
    for i in range(images):
        expected = {(i * captions + k, True) for k in range(captions)}
        expected |= {(j * captions + int(drawn[i, j]), False) for j in range(images) if j != i}
        assert {(int(m), bool(p)) for m, p in zip(met[i], positive[i], strict=True)} == expected


# ---- patches ----------------------------------------------------------------------------------------------------


@over(images=st.integers(1, 5), patches=st.integers(1, 60), share=st.floats(0, 1), seed=numbers, step=numbers)
@settings(max_examples=60, deadline=None)
def test_patches_are_different_ascending_and_the_same_again(images, patches, share, seed, step) -> None:
    index, count = torch.arange(images) * 3 + 1, max(1, round(share * patches))
    places = draw_patches(seed, step, index, patches, count)
    assert places.shape == (images, count)
    assert ((places >= 0) & (places < patches)).all()
    assert (places[:, 1:] > places[:, :-1]).all()
    assert torch.equal(places[1:], draw_patches(seed, step, index[1:], patches, count))  # on another rank


def test_patches_are_uniform_and_drawn_anew() -> None:
    """Chi-square of how often each patch of an image is drawn over the steps, and each over the images of a step."""
    patches, count = 14, 5
    over_steps = torch.cat([draw_patches(3, step, torch.arange(2), patches, count) for step in range(1500)])
    over_images = draw_patches(3, 0, torch.arange(3000), patches, count)
    for places in (over_steps, over_images):
        counts = torch.bincount(places.flatten(), minlength=patches).double()
        expected = places.numel() / patches
        assert ((counts - expected) ** 2 / expected).sum() < patches - 1 + 5 * (2 * (patches - 1)) ** 0.5
        assert len({tuple(row) for row in places.tolist()}) > 1000  # of the 2002 possible
    assert not torch.equal(over_images, draw_patches(4, 0, torch.arange(3000), patches, count))
