"""Shared by all tests: tiny emoji shards, overrides that make any demo recipe tiny, and what the tests of the losses
need: tiny recipes, random batches, features whose tensors are given, comparison of values and gradients."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import settings
from random_batch import pad_rows, random_batch
from torch import Tensor

from vlp.data import shards
from vlp.data.batch import Batch
from vlp.data.emoji_shards import DemoSet, write_demo_set
from vlp.data.tokens import END, START
from vlp.models.model import VisionLanguageModel
from vlp.objectives.features import Features
from vlp.recipe import Recipe, load_recipe

settings.register_profile("ci", derandomize=True)  # a landing does not hang on the day's luck
settings.load_profile("ci" if os.environ.get("CI") else "default")

REPOSITORY = Path(__file__).resolve().parents[1]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SCALE = REPOSITORY / "tests/objectives/tiny.yaml"


@pytest.fixture(scope="session", autouse=True)
def impatient() -> None:
    """Shards that fail are tried again at once."""
    shards.RETRY_SECONDS = (0.0,) * len(shards.RETRY_SECONDS)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 4 training shards of 24 scenes, 48 validation scenes, their classes and questions."""
    folder = tmp_path_factory.mktemp("shards") / "emoji"
    write_demo_set(folder, DemoSet(train=96, validation=48, side=64, shard_size=24, questions=10))
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_shards: Path) -> list[str]:
    """Overrides: tiny towers and batches on the tiny shards."""
    return [
        f"data.train={tiny_shards}/train-*.tar",
        f"data.validation={tiny_shards}/validation-*.tar",
        "data.workers=0",
        "data.streams=2",
        "data.shuffle=8",
        "data.views.local_size=16",
        "model.embed_dim=32",
        "model.vision.image_size=32",
        "model.vision.patch_size=16",
        "model.vision.width=32",
        "model.vision.depth=2",
        "model.vision.heads=2",
        "model.text.width=32",
        "model.text.layers=2",
        "model.text.heads=2",
        "model.pooling.heads=2",
        "model.decoder.layers=2",
        "model.decoder.heads=2",
        "train.batch_size=8",
        "train.steps=4",
        "train.warmup_steps=2",
        "train.log_every=1",
        "evaluation.samples=16",
        "evaluation.tasks=[retrieval]",
    ]


# ---- losses -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Recipe]:
    """A shipped recipe at a size for tests, with overrides."""

    def make(name: str, *overrides: str) -> Recipe:
        return load_recipe(REPOSITORY / f"recipes/{name}.yaml", [f"scale={SCALE}", *overrides], world_size=1)

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
    """Features whose tensors are given instead of computed; `texts` [B, K, D] by the name of their request."""

    image_tokens = student_views = None

    def __init__(
        self,
        model: VisionLanguageModel,
        batch: Batch,
        texts: Mapping[str, Tensor] = MappingProxyType({}),
        seed: int = 0,
        step: int = 0,
        teacher: VisionLanguageModel | None = None,
        **tensors,
    ):
        super().__init__(model, teacher, batch, frozenset(texts), seed, step)
        self._given_texts = texts
        for attribute, tensor in tensors.items():
            assert hasattr(Features, attribute), attribute
            setattr(self, attribute, tensor)

    def texts(self, name: str) -> Tensor:
        return self._given_texts[name]


@pytest.fixture(scope="session")
def given() -> type[Given]:
    return Given


@pytest.fixture(scope="session")
def compare() -> Callable[..., None]:
    """Two float64 scalars and their gradients with respect to `leaves` are equal."""

    def check(ours: Tensor, naive: Tensor, leaves: Sequence[Tensor]) -> None:
        assert ours.dtype == naive.dtype == torch.float64
        ours, naive = ours.reshape(()), naive.reshape(())
        torch.testing.assert_close(ours, naive, **EXACT)
        first = torch.autograd.grad(ours, leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
        second = torch.autograd.grad(naive, leaves, retain_graph=True, materialize_grads=True, allow_unused=True)
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, **EXACT)

    return check


def _leaf(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return (scale * torch.randn(*shape, generator=rng, dtype=torch.float64)).requires_grad_()


@pytest.fixture(scope="session")
def leaf() -> Callable[..., Tensor]:
    """A random float64 tensor that wants a gradient."""
    return _leaf
