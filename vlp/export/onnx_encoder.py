"""The vision encoder as one ONNX file, and ONNX Runtime on it.

Shapes: B images, S side of the picture.
"""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from vlp.errors import UserError
from vlp.export.encoder import INPUT, OUTPUTS, VisionEncoder
from vlp.models.model import VisionLanguageModel

FILE = "model.onnx"
OPSETS = range(18, 24)
DEFAULT_OPSET = 20


def write_onnx(
    model: VisionLanguageModel, size: int, path: Path, metadata: dict[str, Any], opset: int = DEFAULT_OPSET
) -> None:
    """Export with a dynamic batch to the single file `path`.

    Args:
        metadata: into the model's metadata_props; values that are no strings as JSON.

    Raises:
        UserError: for an opset that the exporter has no full set of operators for.
    """
    if opset not in OPSETS:
        raise UserError(f"--opset {opset}: allowed are {OPSETS.start} to {OPSETS.stop - 1}")
    encoder = VisionEncoder(model).eval()
    example_B3SS = torch.zeros(2, 3, size, size)
    with quiet():
        program = torch.onnx.export(
            encoder,
            (example_B3SS,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
        graph = program.model.graph
        for node in graph.all_nodes():
            node.metadata_props.clear()  # stack traces with this machine's paths
        program.model.metadata_props.clear()
        program.model.metadata_props.update(
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        )
        program.save(str(path), external_data=False)


def open_session(path: Path, provider: str = "CPUExecutionProvider") -> onnxruntime.InferenceSession:
    """ONNX Runtime on the file.

    Raises:
        UserError: when the file does not load, or runs elsewhere: without CUDA, ONNX Runtime falls back silently.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise UserError(f"{path}: ONNX Runtime does not load it ({error!s:.150}); export it again") from None
    if provider not in session.get_providers():
        raise UserError(f"{path}: {provider} is not available, ONNX Runtime has {', '.join(session.get_providers())}")
    return session


def run_onnx(session: onnxruntime.InferenceSession, pixels_B3SS: Tensor) -> dict[str, np.ndarray]:
    """The outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: pixels_B3SS.numpy()}), strict=True))


@contextlib.contextmanager
def quiet():
    """Silence the exporter's progress lines, warnings and logs; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
