"""The README of a model repository."""

from __future__ import annotations

from collections.abc import Sequence

from ldp_export.triton.serving import MODELS, VARIANTS, VERSION, Serving
from ldp_runtime import __version__
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.triton import BUNDLE_FOLDER

_README = """\
# {bundle} on Triton Inference Server

Written by `ldp-export triton`, variant `{variant}`: {what}. Models:

{models}

Clients call `{first}`:

| tensor | shape | type |
| --- | --- | --- |
| input `LEFT`, `RIGHT` | (n, h, w, 3) RGB, n pairs of one size | {bits} |
| output `RESTORED` | (n, h, w, 3) | that of the views |
{blur_map}
The parameter `axis` of a request is `horizontal` or, for sensors that split top and bottom, `vertical`. The parameter
`check` is `auto` (measure the pair first, correct what can be, refuse what would only do harm), `warn` (write what
seems wrong into the server's log) or `off`; without it, it is what the model was written with. What is wrong with a
pair comes back as the error of its request.

## Start the server

The Python backend needs the package `ldp` {version} in its Python, 3.11 or newer. In a container of Triton:

```sh
pip install ldp-{version}-py3-none-any.whl            # from `pip wheel --no-deps .` in LDP's repository{extras}
tritonserver --model-repository=/path/to/this/folder
```

Give the container shared memory, through which images travel (`docker run --shm-size=1g`), and let HTTP take large
photos: newer servers refuse more than 64 MiB unless `--http-max-input-size` says otherwise. {trust}

With no container, on x86-64 Linux, the package `nvidia-pytriton` carries a server with the Python backend alone:

```sh
pip install ldp-{version}-py3-none-any.whl 'tritonclient[grpc,http]'
pip install --no-deps nvidia-pytriton                # it pins NumPy 1, which only its own Python code needs
python serve.py --http-port=8000 --grpc-port=8001 --metrics-port=8002
```

## Call it

```sh
pip install numpy opencv-python-headless 'tritonclient[grpc,http]'
python client.py left.png right.png -o sharp.png                                           # HTTP, port 8000
python client.py left.png right.png -o sharp.png --grpc --url localhost:8001
```

## Tune it

* `instance_group` of `{first}`: how many processes restore pairs at a time. {instances}
* `dynamic_batching`: a process takes up to {max_batch} pairs, of any sizes, from the queue. They run one after the
  other; on a GPU the copies of one overlap with the work on another. When more than `max_queue_size` requests wait,
  further ones are refused at once.
* `parameters`: precision and tiles, and for the variant `python` backend and threads, as for `ldp deblur`.
"""
_BLUR_MAP = "| output `BLUR_MAP` | (n, h, w), in [0, 1], 1 is blurred | FP32 |\n"
_INSTANCES = {
    "python": "Each holds the graphs in memory; on a CPU give each its share of the threads (`--threads`).",
    "graphs": "They share the models of the graphs; in `ldp_clip` windows of several pairs go together in a batch.",
}


def to_readme(bundle: Bundle, serving: Serving, names: Sequence[str]) -> str:
    """The text, for a repository with models of these names."""
    alone = serving.variant == "python"
    trust = f"ldp trust {serving.models[0]}/{VERSION}/{BUNDLE_FOLDER}"
    return _README.format(
        bundle=bundle.manifest.name,
        variant=serving.variant,
        what=VARIANTS[serving.variant],
        blur_map=_BLUR_MAP if bundle.manifest.reads_blur_map else "",
        models="\n".join(f"* `{name}`" for name in names),
        first=serving.models[0],
        bits=" or ".join(f"UINT{bits} for `{MODELS[bits]}`" for bits in dict.fromkeys(serving.bits)),
        version=__version__,
        extras="; on a GPU: 'ldp[rtx,cuda] @ file:///...'" if alone else "",
        trust=f"The bundle's engines run once the server's user trusts them: `{trust}`." if alone else "",
        instances=_INSTANCES["python" if alone else "graphs"],
        max_batch=serving.max_batch,
    )
