"""Under ZeRO-3 the EMA teacher moves shard by shard, and what is gathered equals the formula."""

from pathlib import Path

import pytest
import torch
from ranks import spawn_ranks
from torch import Tensor, nn

from vlp.recipe import load_recipe

MOMENTUM = 0.9
THRESHOLDS = {"sharded": 0, "small_ones_whole": 100_000}
"""`stage3_param_persistence_threshold`: parameters below it stay whole on every rank, beside their shards."""


def gathered(module: nn.Module) -> dict[str, Tensor]:
    import deepspeed

    parameters = dict(module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: parameter.detach().double().clone() for name, parameter in parameters.items()}


def train_watching_the_teacher(recipe: str, overrides: list[str], folder: Path) -> None:
    """In a spawned rank: at the end of every step, the largest distance of each gathered teacher parameter from the
    formula, and from where it was."""
    import torch.distributed as dist

    from vlp.engine.trainer import train
    from vlp.objectives.graph import ObjectiveGraph

    end_step, seen = ObjectiveGraph.end_step, []

    def watched(graph: ObjectiveGraph, step: int) -> None:
        before, student = gathered(graph.teacher), gathered(graph.model)
        assert all(hasattr(parameter, "ds_tensor") for parameter in graph.teacher.parameters())
        end_step(graph, step)
        after = gathered(graph.teacher)
        formula = {name: MOMENTUM * old + (1 - MOMENTUM) * student[name] for name, old in before.items()}
        seen.append(
            {name: ((now - formula[name]).abs().max(), (now - before[name]).abs().max()) for name, now in after.items()}
        )

    ObjectiveGraph.end_step = watched
    for name, threshold in THRESHOLDS.items():
        zero = f"engine.deepspeed.zero_optimization.stage3_param_persistence_threshold={threshold}"
        train(load_recipe(recipe, [*overrides, zero, f"run.dir={folder / name}"]))
        if dist.get_rank() == 0:
            torch.save(seen, folder / f"{name}.pt")
        seen.clear()


@pytest.fixture(scope="module")
def watched(repository: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    overrides = [
        *(*tiny, "train.steps=3", "evaluation.tasks=[]", "data.validation=null"),
        *("engine.zero_stage=3", f"model.teacher_momentum={MOMENTUM}"),
    ]
    spawn_ranks(train_watching_the_teacher, 2, str(repository / "recipes/flair_tcsd.yaml"), overrides, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kept", THRESHOLDS)
def test_the_gathered_teacher_equals_the_formula_and_moves(kept: str, watched: Path) -> None:
    steps = torch.load(watched / f"{kept}.pt")
    assert len(steps) == 3
    for name in steps[0]:
        assert max(float(step[name][0]) for step in steps) < 1e-7, name
        assert min(float(step[name][1]) for step in steps) > 0, name
