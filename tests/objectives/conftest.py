"""Tiny recipes, random batches, and features whose tensors are given: what the tests of the losses share."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from random_batch import pad_rows, random_batch
from torch import Tensor

from vlp.data.batch import Batch
from vlp.data.tokens import END, START
from vlp.models.model import VisionLanguageModel
from vlp.objectives.features import Features
from vlp.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SCALE = Path(__file__).parent / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Recipe]:
    """A shipped recipe at a size for tests, with overrides."""

    def make(name: str, *overrides: str) -> Recipe:
        return load_recipe(RECIPES / f"{name}.yaml", [f"scale={SCALE}", *overrides], world_size=1)

    return make


@pytest.fixture(scope="session")
def caption_ids() -> Callable[[list[list[int]]], Tensor]:
    """[T, L] from the inner ids of each caption: start and end token around them, padding behind."""

    def make(inner: list[list[int]]) -> Tensor:
        return pad_rows([[START, *ids, END] for ids in inner], max(map(len, inner)) + 2)

    return make


@pytest.fixture(scope="session", name="random_batch")
def random_batch_fixture() -> Callable[..., Batch]:
    return random_batch


class Given(Features):
    """Features of `own` images out of all, whose tensors are given instead of computed."""

    image_tokens = image_embeds = patch_embeds = student_views = teacher_views = None

    def __init__(
        self,
        model: VisionLanguageModel,
        name: str,
        texts_GKD: Tensor,
        own: Sequence[int] | None = None,
        index: Sequence[int] | None = None,
        seed: int = 0,
        step: int = 0,
        teacher: VisionLanguageModel | None = None,
        **tensors,
    ):
        own = torch.arange(len(texts_GKD)) if own is None else torch.tensor(own)
        index_G = torch.arange(len(texts_GKD)) if index is None else torch.tensor(index)
        batch = tensors.pop("batch", None) or Batch(index_B=index_G[own])
        super().__init__(model, teacher, batch, frozenset({name}), seed, step)
        self._given_texts = {name: texts_GKD[own]}
        self.everywhere = {"index": index_G, f"texts/{name}": texts_GKD}
        if "images_GD" in tensors:
            self.everywhere["images"] = tensors.pop("images_GD")
            self.image_embeds = self.everywhere["images"][own]
        self.own = {key: tensor[own] for key, tensor in self.everywhere.items()}
        if "patches_GPD" in tensors:
            self.patch_embeds = tensors.pop("patches_GPD")[own]
        for attribute, tensor in tensors.items():
            assert hasattr(Given, attribute), attribute
            setattr(self, attribute, tensor)

    def texts(self, name: str) -> Tensor:
        return self._given_texts[name]


@pytest.fixture(scope="session")
def given() -> type[Given]:
    return Given


@pytest.fixture(scope="session")
def compare() -> Callable[..., None]:
    """Two float64 scalars and their gradients with respect to `leaves` are equal."""

    def check(ours: Tensor, naive: Tensor, leaves: Sequence[Tensor], value: float = 1e-10, slope: float = 1e-9) -> None:
        assert ours.dtype == naive.dtype == torch.float64
        ours, naive = ours.reshape(()), naive.reshape(())
        torch.testing.assert_close(ours, naive, rtol=value, atol=value)
        if not leaves:
            return
        first = torch.autograd.grad(ours, leaves, retain_graph=True, allow_unused=True)
        second = torch.autograd.grad(naive, leaves, retain_graph=True, allow_unused=True)
        for leaf, one, other in zip(leaves, first, second, strict=True):
            one, other = (torch.zeros_like(leaf) if part is None else part for part in (one, other))
            torch.testing.assert_close(one, other, rtol=slope, atol=slope)

    return check


def _leaf(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return (scale * torch.randn(*shape, generator=rng, dtype=torch.float64)).requires_grad_()


@pytest.fixture(scope="session")
def leaf() -> Callable[..., Tensor]:
    """A random float64 tensor that wants a gradient."""
    return _leaf
