"""Restores a dual-pixel pair on a Triton server. Needs numpy, opencv-python-headless and tritonclient[grpc,http].

python client.py left.png right.png -o sharp.png --blur-map blur.png
python client.py left.tif right.tif -o sharp.tif --url localhost:8001 --grpc --axis vertical
"""

from __future__ import annotations

import argparse
import importlib
import sys

import cv2
import numpy as np

MODELS = {"uint8": "ldp", "uint16": "ldp_uint16"}


def restore(
    url: str,
    left: np.ndarray,
    right: np.ndarray,
    *,
    axis: str = "horizontal",
    check: str | None = None,
    grpc: bool = False,
    blur_map: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sends one pair and waits for its images.

    Args:
        url: Host and port, such as ``localhost:8000`` (HTTP) or ``localhost:8001`` (gRPC).
        left: ``(h, w, 3)`` uint8 or uint16 RGB.
        right: The other view, likewise.
        axis: Direction of the disparity, ``"horizontal"`` or ``"vertical"``.
        check: What the check of the pair does, ``"auto"``, ``"warn"`` or ``"off"``; None is what the model was
            written with.
        grpc: ``url`` speaks gRPC.
        blur_map: Ask for the blur map too; some networks have none.

    Returns:
        The restored image ``(h, w, 3)`` in the dtype of the views, and the blur map ``(h, w)`` float32 in [0, 1] or
        None.

    Raises:
        tritonclient.utils.InferenceServerException: The server refused the pair or cannot be reached.
    """
    protocol = importlib.import_module("tritonclient.grpc" if grpc else "tritonclient.http")
    inputs = []
    for name, view in (("LEFT", left), ("RIGHT", right)):
        batch = np.ascontiguousarray(view)[None]  # (1, h, w, 3)
        inputs.append(protocol.InferInput(name, list(batch.shape), batch.dtype.name.upper()))
        inputs[-1].set_data_from_numpy(batch)
    names = ("RESTORED", "BLUR_MAP") if blur_map else ("RESTORED",)
    outputs = [protocol.InferRequestedOutput(name) for name in names]
    client = protocol.InferenceServerClient(url) if grpc else protocol.InferenceServerClient(url, network_timeout=600)
    parameters = {"axis": axis} if check is None else {"axis": axis, "check": check}
    with client:
        result = client.infer(MODELS[view.dtype.name], inputs, outputs=outputs, parameters=parameters)
    return result.as_numpy("RESTORED")[0], result.as_numpy("BLUR_MAP")[0] if blur_map else None


def read(path: str) -> np.ndarray:
    """Reads a picture as ``(h, w, 3)`` RGB."""
    picture = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if picture is None or picture.dtype.name not in MODELS:
        raise SystemExit(f"{path}: expected a picture of 8 or 16 bits, got none that can be read")
    return np.ascontiguousarray(picture[..., ::-1])


def write(path: str, picture: np.ndarray) -> None:
    """Writes RGB ``(h, w, 3)`` or grey ``(h, w)``."""
    written = cv2.imwrite(path, picture if picture.ndim == 2 else picture[..., ::-1])
    if not written:
        raise SystemExit(f"{path} cannot be written; choose another name")


def main() -> None:
    """Reads two pictures and writes the restored one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("left", help="left view, 8 or 16 bits")
    parser.add_argument("right", help="right view, of the same size and depth")
    parser.add_argument("-o", "--output", required=True, help="the restored picture")
    parser.add_argument("--blur-map", metavar="PATH", help="also write the blur map: light is blurred")
    parser.add_argument("--axis", default="horizontal", choices=("horizontal", "vertical"))
    parser.add_argument(
        "--check", choices=("auto", "warn", "off"), help="check of the pair (default: what the model was written with)"
    )
    parser.add_argument("--url", help="host and port (default: localhost:8000, with --grpc localhost:8001)")
    parser.add_argument("--grpc", action="store_true", help="speak gRPC in place of HTTP")
    arguments = parser.parse_args()

    try:
        from tritonclient.utils import InferenceServerException
    except ImportError as error:
        sys.exit(f"expected the package tritonclient ({error}); pip install 'tritonclient[grpc,http]'")

    url = arguments.url or ("localhost:8001" if arguments.grpc else "localhost:8000")
    try:
        left, right, wanted = read(arguments.left), read(arguments.right), arguments.blur_map is not None
        restored, blur_map = restore(
            url, left, right, axis=arguments.axis, check=arguments.check, grpc=arguments.grpc, blur_map=wanted
        )
    except (InferenceServerException, OSError) as error:
        sys.exit(f"{url}: {error}")
    write(arguments.output, restored)
    if blur_map is not None:
        write(arguments.blur_map, np.rint(255 * blur_map).astype(np.uint8))


if __name__ == "__main__":
    main()
