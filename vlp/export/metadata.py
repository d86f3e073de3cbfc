"""What an exported encoder says about itself: preprocessing, origin, outputs."""

import hashlib
from importlib.metadata import version
from typing import Any

from PIL.Image import Resampling

from vlp.export.encoder import INPUT, INPUT_DESCRIPTION, OUTPUTS
from vlp.recipe import Recipe


def encoder_metadata(recipe: Recipe) -> dict[str, Any]:
    """Everything that a user of the file needs to feed it and to find where it came from."""
    return {
        "vlp_version": version("vlp"),
        "recipe": recipe.name,
        "scale": recipe.scale,
        "recipe_hash": recipe_hash(recipe),
        "step": recipe.train.steps,
        "preprocessing": {
            "size": recipe.model.vision.image_size,
            "mean": list(recipe.data.mean),
            "std": list(recipe.data.std),
            "interpolation": "bicubic",
            "crop": "the largest centred square, resized to size x size",
        },
        "inputs": {INPUT: INPUT_DESCRIPTION},
        "outputs": OUTPUTS,
    }


def recipe_hash(recipe: Recipe) -> str:
    """Of all that the resolved recipe decides, wherever its run lies and however it is evaluated."""
    return hashlib.sha256(recipe.model_dump_json(exclude={"run", "evaluation"}).encode()).hexdigest()[:16]


def preprocessor_config(recipe: Recipe) -> dict[str, Any]:
    """`preprocessor_config.json` as transformers' CLIPImageProcessor reads it.

    The short side to `size` and the centre square of that is the centre square resized, up to rounding.
    """
    size = recipe.model.vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": int(Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(recipe.data.mean),
        "image_std": list(recipe.data.std),
    }
