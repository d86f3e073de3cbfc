"""Checkpoints of a run: written beside and renamed, with a manifest that shows one cut short; the exported weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from vlp.engine.distributed import barrier, rank, world_size
from vlp.errors import UserError
from vlp.models.model import ONLY_FOR_TRAINING

MANIFEST = "manifest.json"


def save_checkpoint(engine: Any, folder: Path, step: int, positions: dict[int, Any], keep: int) -> None:
    """Write `folder/step-N`: modules (teacher, centers and IDF counts among them), optimizer, random states, and how
    far each stream of every rank has read. Collective; only the `keep` newest stay."""
    name = f"step-{step:08d}"
    partial = folder / f"{name}.partial"
    if rank() == 0 and partial.exists():
        shutil.rmtree(partial)
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, (positions, torch.get_rng_state()))
    state = {
        "step": step,
        "positions": {stream: position for part, _ in everywhere for stream, position in part.items()},
        "random_states": [random for _, random in everywhere],
    }
    engine.save_checkpoint(str(folder), tag=partial.name, client_state=state, save_latest=False)
    barrier()
    if rank() == 0:
        sizes = {str(file.relative_to(partial)): file.stat().st_size for file in partial.rglob("*") if file.is_file()}
        manifest = {"step": step, "ranks": world_size(), "zero_stage": engine.zero_optimization_stage(), "files": sizes}
        (partial / MANIFEST).write_text(json.dumps(manifest))
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        partial.rename(folder / name)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    barrier()


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


def check_checkpoint(path: Path, ranks: int, zero_stage: int) -> dict[str, Any]:
    """The manifest of a checkpoint that can be resumed from here.

    Raises:
        UserError: when a file is missing or shorter than it was written, or when ranks or stage differ.
    """
    remedy = f"delete {path} to resume from the checkpoint before it"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{path}: checkpoint without a readable {MANIFEST}; {remedy}") from None
    for name, size in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            raise UserError(f"{path}: checkpoint is cut short: {name} has {found} of {size} bytes; {remedy}")
    if (manifest["ranks"], manifest["zero_stage"]) != (ranks, zero_stage):
        raise UserError(
            f"{path}: written by {manifest['ranks']} ranks at engine.zero_stage={manifest['zero_stage']}, now {ranks} "
            f"ranks at {zero_stage}; resume with the same, or give another run.dir"
        )
    return manifest


def load_checkpoint(engine: Any, path: Path) -> tuple[int, dict[int, Any]]:
    """Restore the engine from a checked checkpoint; the step to go on with, and the streams' positions."""
    _, state = engine.load_checkpoint(str(path.parent), tag=path.name)
    torch.set_rng_state(state["random_states"][rank()])
    return state["step"], state["positions"]


def consolidated_state(engine: Any) -> dict[str, torch.Tensor]:
    """The student's weights that stay after training, whole and on the CPU, on rank 0; empty elsewhere. Collective."""
    state = {}
    model = engine.module.model
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in ONLY_FOR_TRAINING:
            continue
        with deepspeed.zero.GatheredParameters(parameter, enabled=hasattr(parameter, "ds_id")):
            if rank() == 0:
                state[name] = parameter.detach().float().cpu().clone()
    return state


def save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write safetensors beside, then rename."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
    os.replace(partial, path)
