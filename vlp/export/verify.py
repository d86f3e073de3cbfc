"""Proof that an exported encoder is the trained one: its outputs on real pictures against the trained model's.

Shapes: B images, S side of the picture; outputs end in a dimension of vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlp.evaluation.encode import read_validation
from vlp.evaluation.table import print_table
from vlp.export.encoder import reference_outputs
from vlp.models.model import VisionLanguageModel
from vlp.recipe import Recipe

TOLERANCE = 1e-4
IMAGES = 16
CUTS = (1, 3, 8)
"""Where verification cuts the pictures into batches of 1, 2, 5 and 8: a batch that is fixed in the graph shows."""


@dataclass(frozen=True)
class Difference:
    """One output, compared: largest absolute difference, and lowest cosine of two vectors (image or token)."""

    output: str
    shape: tuple[int, ...]
    largest: float
    cosine: float

    @property
    def agrees(self) -> bool:
        return self.largest <= TOLERANCE


def verify(
    recipe: Recipe, model: VisionLanguageModel, run: Callable[[Tensor], Mapping[str, np.ndarray | Tensor]]
) -> list[Difference]:
    """Compare `run`, which takes normalised pixels [B, 3, S, S] to named outputs, with the trained model.

    Raises:
        UserError: when there are no validation pictures to compare on.
    """
    batches = [batch for batch in validation_pixels(recipe, model, IMAGES).tensor_split(CUTS) if len(batch)]
    found = [run(batch) for batch in batches]
    expected = [reference_outputs(model, batch) for batch in batches]
    return [
        compare(name, torch.cat([part[name] for part in expected]), concatenate([part[name] for part in found]))
        for name in expected[0]
    ]


def validation_pixels(recipe: Recipe, model: VisionLanguageModel, count: int) -> Tensor:
    """float32 [B, 3, S, S]: the first pictures of the validation shards, normalised."""
    few = recipe.evaluation.model_copy(update={"samples": count})
    samples = read_validation(recipe.model_copy(update={"evaluation": few}))
    return model.vision.normalise(torch.from_numpy(np.stack([sample.image for sample in samples])))


def concatenate(parts: list[np.ndarray | Tensor]) -> Tensor:
    return torch.cat([torch.as_tensor(part) for part in parts])


def compare(name: str, expected: Tensor, found: Tensor) -> Difference:
    """Another shape, or a value that is not finite, differs infinitely."""
    shape = tuple(expected.shape)
    if found.shape != expected.shape:
        return Difference(name, shape, float("inf"), -1.0)
    difference = (found.double() - expected.double()).abs().max().item()
    cosine = cosine_similarity(found.double(), expected.double(), dim=-1).min().item()
    return Difference(name, shape, difference if np.isfinite(difference) else float("inf"), cosine)


def report(differences: list[Difference], console: Console) -> bool:
    """Print the table; whether every output agrees."""
    rows = [
        [d.output, " x ".join(map(str, d.shape)), f"{d.largest:.1e}", f"{d.cosine:.7f}", "yes" if d.agrees else "NO"]
        for d in differences
    ]
    head = ["output", "compared", "largest difference", "lowest cosine", "agrees"]
    print_table(f"against the trained model, at most {TOLERANCE:g} allowed", head, rows, console)
    return all(difference.agrees for difference in differences)
