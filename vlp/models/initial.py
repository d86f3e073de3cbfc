"""Weights that a student starts from."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vlp.errors import UserError


def initial_weights(path: str | Path) -> Path:
    """The weights file of a run folder, or the file itself. Raises ValueError when there is none."""
    path = Path(path).expanduser()
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"model.init: {file} does not exist; give the folder of a finished run")
    return file


def start_from(model: nn.Module, path: str | Path) -> tuple[int, int]:
    """Copy every tensor of the file that the model has, under the same name and of the same shape.

    Returns how many tensors the model took, and how many it has.

    Raises:
        UserError: when the file cannot be read, no tensor fits, or a locked vision tower lacks one.
    """
    try:
        given = load_file(initial_weights(path))
    except SafetensorError as error:
        raise UserError(f"model.init: {path}: no safetensors file ({error!s:.80}); give a finished run") from None
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    missing = [
        name for name, parameter in model.named_parameters() if not parameter.requires_grad and name not in fitting
    ]
    if not fitting or missing:
        lacking = f"no {missing[0]} of the same shape" if missing else "no tensor of the same name and shape"
        raise UserError(f"model.init: {path} has {lacking}; give a run of the same model.vision")
    model.load_state_dict(fitting, strict=False)
    return len(fitting), len(own)
