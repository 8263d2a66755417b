"""What the tests of exports share."""

from pathlib import Path

import onnx_ir
import pytest

from ldp_export.bundling import onnx_graphs, parity
from ldp_export.simulation.simulate import SimulatedPair
from tests.sample import near_sample


@pytest.fixture
def ready_graphs(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the shared bundle's graphs, whatever the model: making them anew is most of an export's time.

    The sample is cut, which makes the rest quick.
    """

    def load(kind: str, half: bool) -> onnx_ir.Model:
        return onnx_ir.load(exported_bundle / (f"{kind}.fp16.onnx" if half else f"{kind}.onnx"))

    def cut(focus: str) -> SimulatedPair:
        pair = near_sample()
        return SimulatedPair(*(array[200:270, 300:401] for array in (pair.left, pair.right, pair.target, pair.coc)))

    monkeypatch.setattr(onnx_graphs, "clip_graph", lambda encoder, half: load("clip", half))
    monkeypatch.setattr(onnx_graphs, "deblur_graph", lambda network, multiple, half, blur_map: load("deblur", half))
    monkeypatch.setattr(parity, "focus_setting", cut)
