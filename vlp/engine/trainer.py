"""The training loop: one for all recipes. It reads top to bottom as a step happens."""

import math
import os
import socket
import warnings
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from vlp.data.loader import Loaded, make_loader
from vlp.data.preview import preview
from vlp.data.sources import training_shards
from vlp.engine.checkpoint import (
    check_checkpoint,
    consolidated_state,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from vlp.engine.distributed import barrier, rank, sum_over_ranks, world_size
from vlp.engine.monitor import Monitor, Stopwatch, console, peak_memory_bytes
from vlp.engine.optimizer import learning_rate, make_optimizer, starts_at
from vlp.errors import UserError
from vlp.evaluation.evaluate import evaluate_state
from vlp.evaluation.table import print_result
from vlp.objectives.graph import ObjectiveGraph, data_needs
from vlp.recipe import Recipe
from vlp.run import keep_shards, open_run


def train(recipe: Recipe) -> Path:
    """Train to `train.steps`, resuming the run's newest checkpoint; evaluate; write `model.safetensors`.

    Returns the run's folder. Raises `UserError` before anything expensive for what the user can mend.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    run_dir = open_run(recipe)
    newest = next(reversed(list_checkpoints(run_dir / "checkpoints")), None)
    if newest:
        check_checkpoint(newest, ranks, recipe.engine.zero_stage)
    if int(os.environ.get("RANK", 0)) == 0:
        keep_shards(run_dir, training_shards(recipe), resumes=newest is not None)
        preview(recipe)

    start_process_group()
    device = torch.device(get_accelerator().current_device_name())
    torch.manual_seed(recipe.train.seed)
    graph = ObjectiveGraph(recipe)
    if rank() == 0:
        say_initial(graph)
    engine, *_ = deepspeed.initialize(
        model=graph, optimizer=make_optimizer(graph), config=deepspeed_config(recipe, ranks)
    )
    start, positions = load_checkpoint(engine, newest) if newest else (0, {})
    if rank() == 0 and start:
        console.print(f"going on after step {start}, from {newest}", soft_wrap=True)
    steps = recipe.train.steps
    if start < steps:
        with Monitor(run_dir, start, steps) if rank() == 0 else nullcontext() as monitor:
            run_steps(recipe, engine, device, start, positions, run_dir, monitor)

    state = consolidated_state(engine)
    if rank() == 0:
        save_weights(state, run_dir / "model.safetensors")
        if recipe.data.validation is not None:
            print_result(evaluate_state(recipe, state, run_dir / "evaluation.json", {"step": steps}), console)
        console.print(f"run folder: {run_dir}", soft_wrap=True)
    barrier()
    return run_dir


def run_steps(
    recipe: Recipe,
    engine: Any,
    device: torch.device,
    start: int,
    positions: dict[int, Any],
    run_dir: Path,
    monitor: Monitor | None,
) -> None:
    """Steps `start` to `train.steps`."""
    settings, graph = recipe.train, engine.module
    needs = partial(data_needs, recipe)
    loader = make_loader(recipe, needs, rank(), world_size(), positions, start)
    skipped: Counter[str] = Counter()
    watch = Stopwatch()
    graph.train()
    gradients = GradientWatch(graph, start)
    for step in range(start, settings.steps):
        loaded: list[Loaded] = [watch.wait_for(loader) for _ in range(settings.accumulation)]
        batches = [part.batch.to(device) for part in loaded]
        skipped.update(sum((part.skipped for part in loaded), Counter()))

        totals = graph.begin_step(batches, step)
        caches = engine(batches, totals, step) if len(batches) > 1 else [None]
        rate = learning_rate(step, settings)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate if step >= group["starts_at"] * settings.steps else 0.0
        report: dict[str, Tensor] = {}
        for batch, cache in zip(batches, caches, strict=True):
            total, part = engine(batch, totals, step, cache)
            engine.backward(total)
            report = add_reports(report, part)
            if batch is batches[-1]:
                report |= sum_over_ranks({key: report[key] for key in report if key.split("/")[0] == "loss"})
                stop_if_not_finite(report, step)
                norm = gradient_norm_before_step(engine)
                gradients.report(step)
            engine.step()
        norm = engine.get_global_grad_norm() if norm is None else norm
        graph.end_step(step)

        done = step + 1
        if monitor:
            monitor.advance(done)
        if done % settings.log_every == 0 or done == settings.steps:
            counts = sum_counts(skipped)
            if monitor:
                seconds, waiting = watch.read()
                since = settings.log_every if done % settings.log_every == 0 else done % settings.log_every
                monitor.log(
                    {"step": done, "samples": done * settings.batch_size}
                    | {"epoch": min(position[0] for position in loaded[-1].positions.values())}
                    | {key: value.item() for key, value in report.items()}
                    | {"lr": rate, "grad_norm": float(norm)}
                    | {"samples_per_second": since * settings.batch_size / seconds, "step_seconds": seconds / since}
                    | {"data_wait_fraction": waiting, "peak_memory_bytes": peak_memory_bytes()}
                    | {f"skipped/{reason}": count for reason, count in sorted(counts.items())}
                )
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save_checkpoint(engine, run_dir / "checkpoints", done, loaded[-1].positions, settings.keep_checkpoints)
        every = recipe.evaluation.every
        if every and recipe.data.validation is not None and done % every == 0 and done < settings.steps:
            state = consolidated_state(engine)
            if rank() == 0:
                path = run_dir / "evaluations" / f"step-{done:08d}.json"
                evaluate_state(recipe, state, path, {"step": done}, ["retrieval"])
            barrier()
            watch.read()


def add_reports(sums: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses are shares and add up over micro-batches; everything else is as the last one says."""
    return {key: value + sums[key] if key in sums and key.startswith("loss") else value for key, value in part.items()}


def stop_if_not_finite(report: dict[str, Tensor], step: int) -> None:
    """Before the update, on every rank alike, since the losses are sums over ranks."""
    if math.isfinite(report["loss"].item()):
        return
    bad = [key for key, value in report.items() if key.startswith("loss/") and not math.isfinite(value.item())]
    raise UserError(
        f"step {step + 1}: {', '.join(bad) or 'the total loss'} is not finite; nothing was updated. "
        "The checkpoints before are whole: lower train.learning_rate or set train.gradient_clip, in a new run.dir"
    )


class GradientWatch:
    """Says once, after the first backward, whether every parameter that trains by then took a gradient."""

    def __init__(self, graph: ObjectiveGraph, step: int):
        recipe = graph.recipe
        watched = {
            name: parameter
            for name, parameter in graph.named_parameters()
            if parameter.requires_grad and step >= starts_at(name, recipe) * recipe.train.steps
        }
        self.without, self.count = set(watched), len(watched)
        self.hooks = [
            parameter.register_hook(lambda _, name=name: self.without.discard(name))
            for name, parameter in watched.items()
        ]

    def report(self, step: int) -> None:
        """Print it on rank 0 and stop watching; later calls do nothing."""
        if not self.hooks:
            return
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        if rank() == 0:
            missing = f", none reached {', '.join(sorted(self.without))}" if self.without else ""
            reached = self.count - len(self.without)
            console.print(
                f"step {step + 1}: {reached} of {self.count} trainable parameters took a gradient{missing}",
                soft_wrap=True,
            )


def gradient_norm_before_step(engine: Any) -> Tensor | None:
    """The global gradient norm at stage 0, where gradients are whole; ZeRO gives it after its step."""
    if engine.zero_optimization():
        return None
    return torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def sum_counts(counts: Counter[str]) -> dict[str, int]:
    """Counts by reason over all ranks."""
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, dict(counts))
    return dict(sum((Counter(part) for part in everywhere), Counter()))


def say_initial(graph: ObjectiveGraph) -> None:
    """Print what the student starts from, where that is not random."""
    model = graph.recipe.model
    if model.init:
        taken, count = graph.initial
        console.print(f"model.init: {taken} of the student's {count} tensors come from {model.init}", soft_wrap=True)
    elif model.vision.locked:
        console.print("model.vision.locked: the image tower keeps its random weights; model.init=RUN gives it others")


def start_process_group() -> None:
    """DeepSpeed's process group; a process of its own when no launcher started this one."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)  # what DeepSpeed calls
    deepspeed.init_distributed(verbose=False)
    if get_accelerator().device_name() != "cpu":
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    elif "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))


def deepspeed_config(recipe: Recipe, ranks: int) -> dict[str, Any]:
    """What DeepSpeed is told. Everything the recipe decides is said, because DeepSpeed's silence has defaults of
    its own (gradients clipped at 1.0, for one)."""
    settings, engine = recipe.train, recipe.engine
    further = dict(engine.deepspeed)
    zero = {"stage": engine.zero_stage} | further.pop("zero_optimization", {})
    return further | {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.batch_size // (settings.accumulation * ranks),
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.gradient_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": engine.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 10**9,
    }


def describe(recipe: Recipe) -> None:
    """Build the graph without training and print what would be computed."""
    graph = ObjectiveGraph(recipe)
    console.print(recipe.to_yaml())
    for name, module in [("model", graph.model), ("teacher", graph.teacher), *graph.objectives.items()]:
        if module is not None:
            console.print(f"{name}: {sum(p.numel() for p in module.parameters()):,} parameters")
    needs = graph.needs
    console.print(f"modules: vision, {', '.join(sorted(needs.modules))}")
    console.print(
        f"reads: captions {[r.name for r in needs.data.captions]}, tasks {[t.task for t in needs.data.tasks]}"
    )
