"""The descriptor network as an ONNX file, for programs without torch. Needs the extra ``onnx``.

Input ``image`` (B, 3, H, W) float32 RGB in 0..1, sides in multiples of ``NetConfig.multiple``;
outputs ``descriptor`` (B, D, H/2, W/2) unit vectors and ``face_logit`` (B, H/2, W/2). The weights'
card travels as the model's metadata; the anchors' tables stay in the weights file, which any
program can read (safetensors).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dff.face.extras import require_extra
from dff.infra.files import replaced_file
from dff.infra.networks.weights import Weights

OPSET = 18


def export(weights: Weights, path: Path) -> None:
    """Write ``weights`` to ``path`` in one step. Raises MissingExtra without the extra ``onnx``."""
    with require_extra("onnx"):
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it, and would say so less clearly)
    multiple = weights.net.config.multiple
    example = torch.rand(
        2, 3, 8 * multiple, 12 * multiple, generator=torch.Generator().manual_seed(0)
    )
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    sides = {0: torch.export.Dim("batch"), 2: multiple * rows, 3: multiple * columns}
    with _without_notices():
        program = torch.onnx.export(
            weights.net,
            (example,),
            input_names=["image"],
            output_names=["descriptor", "face_logit"],
            dynamic_shapes=(sides,),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    about = {"scale": weights.anchors.scale, "card": weights.card}
    onnx.helper.set_model_props(model, {"descriptor": json.dumps(about, sort_keys=True)})
    onnx.checker.check_model(model)
    with replaced_file(path) as temporary:
        onnx.save(model, str(temporary))


@contextmanager
def _without_notices() -> Iterator[None]:
    """Leave out what torch's exporter says of torchvision, which the network does not need, and of
    deprecated calls of its own.
    """
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        registration.setLevel(before)
