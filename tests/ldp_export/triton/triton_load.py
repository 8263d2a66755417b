"""Clients that call a Triton server all at once and compare what comes back with a Deblurrer, bit for bit.

Run by ``test_triton_server.py``, or by hand, in the environment that has tritonclient:
python tests/ldp_export/triton/triton_load.py --help. Prints one JSON object.
"""

import argparse
import json
import threading
import time
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from ldp_runtime.deblurrer import Deblurrer

MODELS = {np.dtype(np.uint8): "ldp", np.dtype(np.uint16): "ldp_uint16"}


class Pair:
    """A pair, and what has to come back for it."""

    def __init__(self, deblurrer: Deblurrer, seed: int, shape: tuple[int, int], dtype: Any, axis: str) -> None:
        rng = np.random.default_rng(seed)
        self.axis = axis
        self.left, self.right = rng.integers(0, np.iinfo(dtype).max, (2, *shape, 3), dtype=dtype)
        result = deblurrer(self.left, self.right, axis=axis)
        self.restored, self.blur_map = result.restored, result.blur_map


def infer(protocol: Any, client: Any, left: np.ndarray, right: np.ndarray, axis: str) -> tuple[np.ndarray, np.ndarray]:
    inputs = []
    for name, view in (("LEFT", left), ("RIGHT", right)):
        inputs.append(protocol.InferInput(name, [1, *view.shape], view.dtype.name.upper()))
        inputs[-1].set_data_from_numpy(view[None])
    result = client.infer(MODELS[left.dtype], inputs, parameters={"axis": axis})
    return result.as_numpy("RESTORED")[0], result.as_numpy("BLUR_MAP")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--http", required=True)
    parser.add_argument("--grpc", required=True)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int, help="of the deblurrer that the results are compared with")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=10, help="of each client")
    parser.add_argument("--bits", type=int, nargs="+", default=[8])
    parser.add_argument("--shape", nargs="+", default=["64x96", "40x56", "150x130"], help="HxW in px")
    arguments = parser.parse_args()

    deblurrer = Deblurrer.from_bundle(arguments.bundle, backend=arguments.backend, threads=arguments.threads)
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shape]
    cases = [
        (s, np.dtype(f"uint{bits}"), axis)
        for s in shapes
        for bits in arguments.bits
        for axis in ("horizontal", "vertical")
    ]
    pairs = [Pair(deblurrer, seed, *case) for seed, case in enumerate(cases)]
    seconds: list[float] = []
    wrong: list[str] = []
    refused: list[str] = []
    together = threading.Barrier(arguments.clients)

    def work(number: int) -> None:
        grpc = number % 2 == 1
        protocol = tritonclient.grpc if grpc else tritonclient.http
        url = arguments.grpc if grpc else arguments.http
        try:
            options = {} if grpc else {"network_timeout": 600.0, "connection_timeout": 600.0}
            with protocol.InferenceServerClient(url, **options) as client:
                together.wait()
                for i in range(arguments.requests):
                    pair = pairs[(number + i) % len(pairs)]
                    start = time.perf_counter()
                    restored, blur_map = infer(protocol, client, pair.left, pair.right, pair.axis)
                    seconds.append(time.perf_counter() - start)
                    if restored.dtype != pair.restored.dtype or not np.array_equal(restored, pair.restored):
                        wrong.append(f"client {number}, request {i}: another restored image")
                    if not np.array_equal(blur_map, pair.blur_map):
                        wrong.append(f"client {number}, request {i}: another blur map")
                    if i == arguments.requests // 2:  # among the requests of the others
                        try:
                            infer(protocol, client, pair.left, pair.right[:-1], pair.axis)
                            wrong.append(f"client {number}: views of two sizes were taken")
                        except InferenceServerException as error:
                            refused.append(str(error))
        except Exception as error:  # whatever it is, the thread has to tell
            wrong.append(f"client {number}: {error!r}")
            together.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(arguments.clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    percentiles = dict(zip(("p50", "p95", "p99"), np.percentile(seconds or [0], (50, 95, 99)).tolist(), strict=True))
    answer = {"requests": len(seconds), "pairs_a_second": len(seconds) / wall, "seconds": percentiles}
    print(json.dumps({**answer, "wrong": wrong, "refused": refused}))


if __name__ == "__main__":
    main()
