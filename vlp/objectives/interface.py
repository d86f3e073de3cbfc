"""What an objective is. The graph (`vlp/objectives/graph.py`) knows objectives only through this.

An objective's loss is a *share*: the shares of all ranks and micro-batches add up to the loss of the global batch.
That is what keeps the total the same however the batch is split; the engine's averaging is undone in one place.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from torch import Tensor, nn

from vlp.data.batch import Batch, DataNeeds
from vlp.data.captions import CaptionKind, CaptionRequest
from vlp.settings import ObjectiveSettings, Positive

if TYPE_CHECKING:
    from vlp.models.model import VisionLanguageModel
    from vlp.objectives.features import Features
    from vlp.recipe import Recipe

Totals = dict[str, Tensor]
"""Sums over the global batch of what `Objective.counts` gave."""


class CaptionSettings(ObjectiveSettings):
    """Which captions of each image an objective reads."""

    captions: CaptionKind = "any"
    captions_per_image: Positive = 1
    long_share: float = Field(0.2, ge=0, le=1, description="probability of a long caption where captions is mixed (C6)")

    @property
    def request(self) -> CaptionRequest:
        return CaptionRequest(self.captions, self.captions_per_image, self.long_share)

    @property
    def texts(self) -> str:
        """What the captions' embeddings are called among the shared tensors."""
        return f"texts/{self.request.name}"


@dataclass(frozen=True)
class Needs:
    """What an objective reads: data, student modules, and modules of the EMA teacher.

    `texts` names the caption requests that pass the text tower.
    """

    data: DataNeeds = field(default_factory=DataNeeds)
    modules: frozenset[str] = frozenset()
    teacher_modules: frozenset[str] | None = None
    texts: frozenset[str] = frozenset()

    def __or__(self, other: "Needs") -> "Needs":
        teachers = [part for part in (self.teacher_modules, other.teacher_modules) if part is not None]
        return Needs(
            self.data | other.data,
            self.modules | other.modules,
            frozenset().union(*teachers) if teachers else None,
            self.texts | other.texts,
        )


@dataclass
class Terms:
    """This micro-batch's share of the objective's loss (float32, scalar), scalars to log as they are, and what
    `Objective.end_step` reads: it gets the sums over all micro-batches of all ranks."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """One training signal: it says what it reads, owns its heads, and gives its share of the loss."""

    Settings: ClassVar[type[ObjectiveSettings]]

    def __init__(self, recipe: "Recipe", settings: ObjectiveSettings, model: "VisionLanguageModel"):
        super().__init__()
        self.settings = settings

    @classmethod
    def check(cls, recipe: "Recipe", settings: ObjectiveSettings) -> None:
        """Raise ValueError when the recipe lacks what this objective reads, naming the key to set."""

    @classmethod
    def needs(cls, recipe: "Recipe", settings: ObjectiveSettings) -> Needs:
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What the loss is divided by, or else must know of the whole global batch, counted before any forward.
        The key `present` (int64, scalar) is required: an objective whose total of it is 0 sits the step out."""
        raise NotImplementedError

    def begin_step(self, totals: Totals) -> None:
        """Called once per optimizer step, before the first forward, with the global totals."""

    def shared(self, features: "Features") -> dict[str, Tensor]:
        """The tensors [B, ...] of the own images that losses of other images read too, by name; objectives that share
        the same tensor give it the same name. `forward` finds them in `features.own` and, of the whole global batch,
        in `features.everywhere`. Nothing else may pass between images: that is what makes any split exact."""
        return {}

    def forward(self, features: "Features", totals: Totals) -> Terms:
        raise NotImplementedError

    def end_step(self, observed: Totals) -> None:
        """Called once after each optimizer step, with the sums of `Terms.observed` over the global batch."""
