"""The objective graph: Batch -> Features -> Objectives -> Balancer -> total.

From the union of what a recipe's objectives read follow the loader's fields, the modules that are built and the
passes that run. DeepSpeed wraps this module, so everything that owns a parameter runs inside its forward.
"""

import torch
from torch import Tensor, nn

from vlp.data.batch import Batch
from vlp.engine.distributed import sum_over_ranks, world_size
from vlp.models.ema import copy_student, update_teacher
from vlp.models.model import VisionLanguageModel
from vlp.objectives import REGISTRY
from vlp.objectives.balancing import Balancer
from vlp.objectives.features import Features
from vlp.objectives.interface import Needs, Totals
from vlp.recipe import Recipe


def graph_needs(recipe: Recipe) -> Needs:
    """What all objectives of the recipe read together. Nothing is built for it."""
    needs = Needs()
    for settings in recipe.objectives.values():
        needs |= REGISTRY[settings.type].needs(recipe, settings)
    return needs


class ObjectiveGraph(nn.Module):
    """Student, teacher where one is read, objectives with their heads, and the balancer."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.needs = graph_needs(recipe)
        self.model = VisionLanguageModel(recipe, self.needs.modules)
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

    def begin_step(self, batches: list[Batch]) -> dict[str, Totals]:
        """Count what the losses are divided by, over all micro-batches of all ranks, before any forward."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            for name, objective in self.objectives.items():
                for key, count in objective.counts(batch).items():
                    count = count.to(batch.index_B.device)
                    sums[f"{name}/{key}"] = sums[f"{name}/{key}"] + count if f"{name}/{key}" in sums else count
        sums = sum_over_ranks(sums)
        totals: dict[str, Totals] = {name: {} for name in self.objectives}
        for path, total in sums.items():
            name, key = path.rsplit("/", 1)
            totals[name][key] = total
        for name, objective in self.objectives.items():
            objective.begin_step(totals[name])
        return totals

    def forward(self, batch: Batch, totals: dict[str, Totals], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to call backward on, and a report.

        The total is scaled by the number of micro-batches of all ranks: the engine averages gradients over them,
        and the shares must add up. The report holds `loss` and `loss/NAME` as shares, to be summed over ranks and
        micro-batches, and `weight/NAME` and `NAME/SCALAR` as they are.
        """
        features = Features(self.model, self.teacher, batch, self.needs.texts, self.recipe.train.seed, step)
        terms = {name: objective(features, totals[name]) for name, objective in self.objectives.items()}
        losses = {name: term.loss for name, term in terms.items()}
        present = {name: totals[name]["present"] > 0 for name in self.objectives}
        total, weights = self.balancer(losses, present, share=1 / self.splits)

        report = {"loss": total.detach()}
        report |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        report |= {f"weight/{name}": weight for name, weight in weights.items()}
        report |= {f"{name}/{key}": value for name, term in terms.items() for key, value in term.scalars.items()}
        return total * self.splits, report

    @torch.no_grad()
    def end_step(self) -> None:
        """After the optimizer's step: centers and teachers move."""
        for objective in self.objectives.values():
            objective.end_step()
        if self.teacher is not None:
            update_teacher(self.teacher, self.model, self.recipe.model.teacher_momentum)
