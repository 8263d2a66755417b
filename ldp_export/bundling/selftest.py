"""Gives a bundle the values that the runtime's self-test compares with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ldp_export.bundling.parity import gate
from ldp_runtime.bundle.bundle import Bundle, read_manifest, write_manifest
from ldp_runtime.bundle.manifest import SELFTEST_FILE, Manifest
from ldp_runtime.errors import BundleError
from ldp_runtime.files import cannot_write, write_whole
from ldp_runtime.selftest import BF16_LIMIT_DB, make_sample, try_bf16

BF16_GATE = "self-test bf16 PSNR in dB"


def add_sample(folder: Path) -> Manifest:
    """Writes the sample of a bundle, or writes it anew, and lists it in the manifest.

    Its values come from the FP32 graphs in ONNX Runtime, which the export's parity check holds to torch. An import is
    then run on it in bf16, since its authors may not have: ``Manifest.bf16`` and a gate keep the outcome.

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
        manifest = write_manifest(folder, manifest, extra_files={*manifest.files, SELFTEST_FILE})
        if manifest.origin is None:
            return manifest
        return write_manifest(folder, _with_bf16(manifest, Bundle.load(folder)), extra_files=manifest.files)
    except OSError as error:
        raise BundleError(cannot_write(folder, error)) from error


def _with_bf16(manifest: Manifest, bundle: Bundle) -> Manifest:
    outcome = try_bf16(bundle)
    passed = outcome is not None and outcome.verdict == "pass"
    gates = [entry for entry in manifest.parity.get("gates", ()) if entry["name"] != BF16_GATE]
    if outcome is not None:
        gates.append(gate(BF16_GATE, outcome.psnr_db, BF16_LIMIT_DB, at_most=False, passed=passed))
    return msgspec.structs.replace(manifest, bf16=passed, parity={**manifest.parity, "gates": gates})
