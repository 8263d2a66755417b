"""Gives a bundle the values that the runtime's self-test compares with."""

from __future__ import annotations

from pathlib import Path

from ldp_runtime.bundle.bundle import Bundle, read_manifest, write_manifest
from ldp_runtime.bundle.manifest import SELFTEST_FILE, Manifest
from ldp_runtime.errors import BundleError
from ldp_runtime.files import cannot_write, write_whole
from ldp_runtime.selftest import make_sample


def add_sample(folder: Path) -> Manifest:
    """Writes the sample of a bundle, or writes it anew, and lists it in the manifest.

    Its values come from the FP32 graphs in ONNX Runtime, which the export's parity check holds to torch.

    Args:
        folder: The bundle's folder.

    Returns:
        The manifest as written.

    Raises:
        LDPError: The bundle is damaged or does not run, or its folder cannot be written.
    """
    sample = make_sample(Bundle.load(folder))
    manifest = read_manifest(folder)
    try:
        write_whole({folder / SELFTEST_FILE: sample.to_bytes()})
        return write_manifest(folder, manifest, extra_files={*manifest.files, SELFTEST_FILE})
    except OSError as error:
        raise BundleError(cannot_write(folder, error)) from error
