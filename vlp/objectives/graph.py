"""The objective graph: Batch -> Features -> Objectives -> Balancer -> total.

From the union of what a recipe's objectives read follow the loader's fields, the modules that are built and the
passes that run. DeepSpeed wraps this module, so everything that owns a parameter runs inside its forward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp.data.batch import Batch, DataNeeds
from vlp.engine.distributed import rank, sum_over_ranks, world_size
from vlp.models.ema import copy_student, update_teacher
from vlp.models.initial import start_from
from vlp.models.model import VisionLanguageModel
from vlp.objectives import REGISTRY
from vlp.objectives.balancing import Balancer
from vlp.objectives.features import Features
from vlp.objectives.interface import Needs, Objective, Totals
from vlp.precision import full
from vlp.recipe import Recipe


def started(recipe: Recipe, step: int | None) -> list[str]:
    """The objectives that train at this step; all of the recipe where `step` is None."""
    steps = recipe.train.steps
    return [name for name, settings in recipe.objectives.items() if step is None or step >= settings.starts_at * steps]


def graph_needs(recipe: Recipe, step: int | None = None) -> Needs:
    """What the objectives of the recipe, or those that train at `step`, read together. Nothing is built for it."""
    needs = Needs()
    for name in started(recipe, step):
        settings = recipe.objectives[name]
        needs |= REGISTRY[settings.type].needs(recipe, settings)
    return needs


def data_needs(recipe: Recipe, step: int) -> DataNeeds:
    """What the loader has to make for the batch of this step."""
    return graph_needs(recipe, step).data


@dataclass
class Cache:
    """What one micro-batch of an accumulated step is given of the global batch: the shared tensors of all images, and
    the gradients of the whole total with respect to its own ones."""

    everywhere: dict[str, Tensor]
    gradients: dict[str, Tensor]


class ObjectiveGraph(nn.Module):
    """Student, teacher where one is read, objectives with their heads, and the balancer."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.needs = graph_needs(recipe)
        self.model = VisionLanguageModel(recipe, self.needs.modules)
        if recipe.model.init:
            self.initial = start_from(self.model, recipe.model.init)
        self.teacher = None
        if self.needs.teacher_modules is not None:
            self.teacher = VisionLanguageModel(recipe, self.needs.teacher_modules)
            copy_student(self.teacher, self.model)
        self.objectives = nn.ModuleDict(
            {
                name: REGISTRY[settings.type](recipe, settings, self.model)
                for name, settings in recipe.objectives.items()
            }
        )
        weights = {name: settings.weight for name, settings in recipe.objectives.items()}
        self.balancer = Balancer(weights, recipe.balance)
        self.splits = world_size() * recipe.train.accumulation
        self.observed: dict[str, Totals] = {}

    def begin_step(self, batches: list[Batch], step: int) -> dict[str, Totals]:
        """Count what the losses are divided by, over all micro-batches of all ranks, before any forward."""
        counts: dict[str, Totals] = {}
        for batch in batches:
            for name in started(self.recipe, step):
                add(counts.setdefault(name, {}), self.objectives[name].counts(batch), batch.index_B.device)
        totals = sum_by_name_over_ranks(counts)
        for name, total in totals.items():
            self.objectives[name].begin_step(total)
        return totals

    def forward(
        self, batch: Batch | list[Batch], totals: dict[str, Totals], step: int, cache: Cache | None = None
    ) -> tuple[Tensor, dict[str, Tensor]] | list[Cache | None]:
        """The total to call backward on, and a report; of several batches what `cache_shared` gives, because ZeRO-3
        gathers parameters only in here.

        The total is scaled by the number of micro-batches of all ranks: the engine averages gradients over them,
        and the shares must add up. The report holds `loss` and `loss/NAME` as shares, to be summed over ranks and
        micro-batches, and `weight/NAME` and `NAME/SCALAR` as they are.

        Args:
            totals: what `begin_step` gave: of the objectives that train at this step.
            cache: this micro-batch's part of what `cache_shared` gave, where `batch` is not all that this rank has.
        """
        if isinstance(batch, list):
            return self.cache_shared(batch, totals, step)
        features = self.features(batch, step)
        features.share(self.shared(features, totals), cache.everywhere if cache else None)
        terms = {name: self.objectives[name](features, total) for name, total in totals.items()}
        for name, term in terms.items():
            add(self.observed.setdefault(name, {}), term.observed, batch.index_B.device)
        losses = {name: term.loss for name, term in terms.items()}
        total, weights = self.balancer(losses, present(totals), share=1 / self.splits)

        report = {"loss": total.detach()}
        for name, weight in weights.items():
            has_started = name in losses
            report[f"loss/{name}"] = losses[name].detach() if has_started else torch.zeros_like(weight)
            report[f"weight/{name}"] = weight if has_started else torch.zeros_like(weight)
        report |= {f"{name}/{key}": value for name, term in terms.items() for key, value in term.scalars.items()}
        for name, gradient in cache.gradients.items() if cache else ():
            total = total + (features.own[name] * gradient).sum()
        return total * self.splits, report

    def cache_shared(self, batches: list[Batch], totals: dict[str, Totals], step: int) -> list[Cache | None]:
        """For several micro-batches: what each must know of the others, so that their losses and gradients are those
        of one large batch (the idea of GradCache, arXiv 2101.06983).

        The shared tensors of all are computed without graph. Then every loss that reads them is computed from them,
        for its gradient with respect to them alone. `forward` adds the product of that gradient and the micro-batch's
        own shared tensors, now with graph, to its total. All draws are hashes, so the second pass repeats them.
        """
        reading = {
            name: total for name, total in totals.items() if type(self.objectives[name]).shared is not Objective.shared
        }
        if not reading:
            return [None] * len(batches)
        with torch.no_grad():
            parts = [self.features(batch, step) for batch in batches]
            for features in parts:
                features.share(self.shared(features, totals))
                features.vision  # noqa: B018  the losses below read it, without graph
        everywhere = {name: torch.cat([part.everywhere[name] for part in parts]) for name in parts[0].everywhere}
        leaves = {name: tensor.requires_grad_() for name, tensor in everywhere.items() if tensor.is_floating_point()}
        if not leaves:
            return [None] * len(batches)
        slopes = {name: torch.zeros_like(full(leaf)) for name, leaf in leaves.items()}
        for features in parts:
            features.everywhere = everywhere
            losses = {name: self.objectives[name](features, total).loss for name, total in reading.items()}
            total, _ = self.balancer(losses, present(reading), share=0)
            found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            for name, slope in zip(leaves, found, strict=True):
                slopes[name] += slope
        slopes = sum_over_ranks(slopes)
        everywhere = {name: tensor.detach() for name, tensor in everywhere.items()}
        count, ranks = len(batches), world_size()
        return [
            Cache(everywhere, {name: slope.chunk(count)[i].chunk(ranks)[rank()] for name, slope in slopes.items()})
            for i in range(count)
        ]

    def features(self, batch: Batch, step: int) -> Features:
        texts = graph_needs(self.recipe, step).texts
        return Features(self.model, self.teacher, batch, texts, self.recipe.train.seed, step)

    def shared(self, features: Features, totals: dict[str, Totals]) -> dict[str, Tensor]:
        """All that the objectives share, each tensor once; `index` tells whose image it is."""
        shared = {"index": features.batch.index_B}
        for name in totals:
            own = self.objectives[name].shared(features)
            if any(shared.get(key, tensor) is not tensor for key, tensor in own.items()):
                raise RuntimeError(f"objective {name} shares another tensor under a name that is taken: {list(own)}")
            shared |= own
        return shared

    @torch.no_grad()
    def end_step(self, step: int) -> None:
        """After the optimizer's step: centers and teachers move. A teacher that nobody reads yet is the student."""
        observed = sum_by_name_over_ranks(self.observed)
        for name in started(self.recipe, step):
            self.objectives[name].end_step(observed.get(name, {}))
        self.observed = {}
        if self.teacher is not None:
            is_read = graph_needs(self.recipe, step).teacher_modules is not None
            update_teacher(self.teacher, self.model, self.recipe.model.teacher_momentum if is_read else 0.0)


def present(totals: dict[str, Totals]) -> dict[str, Tensor]:
    """Which objectives the global batch has samples for."""
    return {name: total["present"] > 0 for name, total in totals.items()}


def add(sums: dict[str, Tensor], part: dict[str, Tensor], device: torch.device) -> None:
    """Add `part` to `sums`, key by key."""
    for key, value in part.items():
        sums[key] = sums[key] + value.to(device) if key in sums else value.to(device)


def sum_by_name_over_ranks(parts: dict[str, dict[str, Tensor]]) -> dict[str, Totals]:
    """Nested sums over ranks, in one exchange."""
    flat = {(name, key): value for name, part in parts.items() for key, value in part.items()}
    sums = sum_over_ranks(flat)
    return {name: {key: sums[name, key] for key in part} for name, part in parts.items()}
