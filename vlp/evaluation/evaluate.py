"""All evaluations of a trained student on the recipe's validation shards, as one nested result."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from vlp.evaluation.encode import encode_images, encode_texts, read_validation
from vlp.evaluation.retrieval import retrieval_metrics
from vlp.evaluation.scoring import agnostic_scores, conditioned_scores
from vlp.models.model import VisionLanguageModel
from vlp.recipe import Recipe
from vlp.run import build_student


def evaluate_state(recipe: Recipe, state: dict[str, Any], path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Evaluate consolidated weights with the recipe's tasks and write the result to `path`."""
    model = build_student(recipe, state).to(get_accelerator().current_device_name())
    result = header | evaluate(recipe, model, recipe.evaluation.tasks)
    write_result(result, path)
    return result


def write_result(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(partial, path)


def evaluate(recipe: Recipe, model: VisionLanguageModel, tasks: list[str]) -> dict[str, Any]:
    """`{task: {captions or part: {scoring: {metric: percent}}}}`."""
    started = time.perf_counter()
    samples = read_validation(recipe)
    batch_size = recipe.evaluation.batch_size
    conditioned = hasattr(model, "pooling")
    images_BD, patches_BPD = encode_images(model, samples, batch_size, patches=conditioned)
    result: dict[str, Any] = {"samples": len(samples)}
    if "retrieval" in tasks:
        result["retrieval"] = {}
        for kind in recipe.evaluation.captions:
            texts = [text for sample in samples for text in sample.captions[kind]]
            image_T = torch.tensor([i for i, sample in enumerate(samples) for _ in sample.captions[kind]])
            if not texts:
                continue
            texts_TD = encode_texts(model, texts, batch_size)
            scores = {"agnostic": agnostic_scores(images_BD, texts_TD)}
            if conditioned:
                scores["conditioned"] = conditioned_scores(model.pooling, patches_BPD, texts_TD)
            result["retrieval"][kind] = {name: retrieval_metrics(s, image_T) for name, s in scores.items()}
    result["seconds"] = time.perf_counter() - started
    return result
