"""All evaluations of a trained student on the recipe's validation shards, as one nested result."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from vlp.errors import UserError
from vlp.evaluation.encode import encode_subject
from vlp.evaluation.questions import evaluate_questions
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.evaluation.segmentation import evaluate_segmentation
from vlp.files import write_text
from vlp.models.model import VisionLanguageModel
from vlp.recipe import Recipe
from vlp.run import build_student

TASKS = {"retrieval": evaluate_retrieval, "questions": evaluate_questions, "segmentation": evaluate_segmentation}


def evaluate_state(
    recipe: Recipe, state: dict[str, Any], path: Path, header: dict[str, Any], tasks: list[str] | None = None
) -> dict[str, Any]:
    """Evaluate consolidated weights with `tasks`, or the recipe's, and write the result to `path`."""
    result = header | evaluate(recipe, build_student(recipe, state).to(best_device()), tasks)
    write_result(result, path)
    return result


def evaluate(recipe: Recipe, model: VisionLanguageModel, tasks: list[str] | None = None) -> dict[str, Any]:
    """`{"samples": N, task: {part: {scoring: {metric: percent}}}, "seconds": S}`; each task's docstring says more.

    Args:
        tasks: what is asked for: one that cannot be done raises its `UserError`. None takes `evaluation.tasks` of
            the recipe, as at the end of a training, and notes under the task why it was skipped.
    """
    started = time.perf_counter()
    wanted = recipe.evaluation.tasks if tasks is None else tasks
    subject = encode_subject(recipe, model, patches="segmentation" in wanted)
    result: dict[str, Any] = {"samples": len(subject.samples)}
    for task in wanted:
        try:
            result[task] = TASKS[task](subject)
        except UserError as error:
            if tasks is not None:
                raise
            result[task] = {"skipped": str(error)}
    result["seconds"] = time.perf_counter() - started
    return result


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write JSON beside, then rename. Raises `UserError` where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); name another file") from None


def best_device() -> torch.device:
    """The accelerator that this process has made its own, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
