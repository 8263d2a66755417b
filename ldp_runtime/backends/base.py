"""What a backend and its sessions promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldp_runtime.errors import BackendError, one_line
from ldp_runtime.tensors import Array, TensorSpec

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""Arithmetic of a session. "fp32" and "bf16" run the FP32 graphs, the others need graphs of their own in the bundle."""


def graph_precision(precision: str) -> str:
    """Which of a bundle's graphs a precision runs: those in ``PRECISIONS`` that have their own, the others FP32's."""
    return precision if precision in ("fp16", "int8") else "fp32"


class Session(ABC):
    """A graph made ready to run.

    Attributes:
        inputs: What ``run`` takes.
        outputs: What ``run`` gives.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph.

        Args:
            feeds: One array for each of ``inputs``, of its dtype and shape. They are not changed, nor read
                after the call.

        Returns:
            One array for each of ``outputs``, owned by the caller.

        Raises:
            BackendError: The feeds are not what the graph takes, or the backend failed.
        """
        wanted = {spec.name: spec for spec in self.inputs}
        if feeds.keys() != wanted.keys():
            raise BackendError(f"expected the inputs {', '.join(wanted)}, got {', '.join(feeds) or 'none'}")
        for name, spec in wanted.items():
            if not spec.fits(feeds[name]):
                got = TensorSpec(name, feeds[name].shape, feeds[name].dtype)
                raise BackendError(f"expected the input {spec}, got {got}")
        return self.run_impl({name: np.ascontiguousarray(feeds[name]) for name in wanted})

    @abstractmethod
    def run_impl(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Runs the graph on feeds that are known to be right and contiguous; the rest is as for ``run``."""


class Backend(ABC):
    """What executes a bundle's graphs.

    Attributes:
        name: What the user calls it.
    """

    name: str

    @abstractmethod
    def available(self) -> None:
        """Returns if the backend can be used here.

        Raises:
            BackendError: It cannot; the message says why and the fix.
        """

    @property
    @abstractmethod
    def precisions(self) -> tuple[str, ...]:
        """The precisions that work here, the one that ``"auto"`` means first. Needs an available backend."""

    @abstractmethod
    def describe(self) -> str:
        """The device and the library's version, for people. Needs an available backend."""

    def resolve(self, precision: str, *, bf16: bool = True) -> str:
        """Turns ``"auto"`` into the precision that it means here, and checks any other.

        Args:
            precision: One of ``PRECISIONS`` or ``"auto"``.
            bf16: Whether ``"auto"`` may mean bf16, see ``Manifest.bf16``.

        Raises:
            BackendError: The precision does not work here.
        """
        if precision == "auto":
            return next(found for found in self.precisions if bf16 or found != "bf16")
        if precision not in self.precisions:
            raise BackendError(
                f"expected a precision of {self.name} on this machine ({', '.join(self.precisions)}), "
                f"got {precision!r}; choose one of these or auto"
            )
        return precision


class SessionBackend(Backend):
    """A backend that makes graphs ready to run, one by one."""

    @abstractmethod
    def open_impl(self, path: Path, precision: str, threads: int | None, content: str | None) -> Session:
        """Makes a session; any exception means that the graph cannot be run here."""

    def open(
        self, path: Path, precision: str = "auto", threads: int | None = None, *, content: str | None = None
    ) -> Session:
        """Makes a graph ready to run.

        Args:
            path: An ONNX file: the graph of ``graph_precision``.
            precision: One of ``precisions`` or ``"auto"``.
            threads: CPU threads, at least 1; None leaves it to the backend.
            content: Hash of the graph and its weights. With it the backend keeps what it compiles in the
                user's cache, so that a second start is quick.

        Raises:
            BackendError: The precision does not work here, or the backend refuses the graph.
        """
        if threads is not None and threads < 1:
            raise BackendError(f"expected at least 1 thread, got {threads}; leave it out for the backend's own choice")
        precision = self.resolve(precision)
        try:
            return self.open_impl(path, precision, threads, content)
        except BackendError:
            raise
        except Exception as error:  # each library has its own exceptions
            raise BackendError(f"{self.name} cannot open {path} in {precision}: {one_line(error)}") from error
