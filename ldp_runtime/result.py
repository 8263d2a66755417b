"""What becomes of a pair: its result, and a result that is still in flight."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

from ldp_runtime.errors import LDPError


class Result:
    """A restored pair, or its blur map alone.

    Attributes:
        restored: ``(h, w, 3)`` RGB, all in focus, in the dtype of the input; None where the blur map alone was wanted.
        blur_logits: ``(H / p, W / p)`` float32 in [-10, 10], over the padded pair; p is CLIP's patch, or the side of
            the image's patches where the bundle's blur map comes from those. None if the bundle has no blur map.
        timings: Seconds by stage: ``open`` (near zero once the graphs are open), ``prepare``, ``clip``,
            ``blur_logits``, ``deblur``, ``finish``. On a GPU these are device times, with ``upload`` and ``download``.
        backend: Name of the backend that ran the graphs.
        precision: Precision that they ran in.
        tiles: Number of tiles that the image was restored in; 1 is one piece.
        notes: What the user should know of how the result was made, such as that memory ran out; sentences.
        check: What the check of the pair found, a ``paircheck.check.PairCheck``; None where it was off.
        scale: Scale that the pair was restored at: 1, 0.5 or 0.25.
    """

    def __init__(
        self,
        *,
        restored: Any,
        blur_map: Any,
        blur_logits: Any,
        timings: dict[str, float],
        backend: str,
        precision: str,
        tiles: int = 1,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Takes the attributes; ``blur_map`` is the map, None, or a function that makes it when it is first read."""
        self.restored = restored
        self._blur_map = blur_map
        self.blur_logits = blur_logits
        self.timings = timings
        self.backend = backend
        self.precision = precision
        self.tiles = tiles
        self.notes = notes
        self.check: Any = None
        self.scale = 1.0

    @functools.cached_property
    def blur_map(self) -> Any:
        """``(h, w)`` float32 in [0, 1], larger where more blurred; None if the bundle has no blur map."""
        return self._blur_map() if callable(self._blur_map) else self._blur_map

    def replace_blur_map(self, blur_map: Callable[[], Any]) -> None:
        """Takes a function that makes another map when it is first read."""
        self._blur_map = blur_map
        self.__dict__.pop("blur_map", None)


class PendingResult:
    """A pair in flight.

    On a GPU the work goes on by itself; on a CPU ``result`` does it. Results are to be asked for in the order in which
    their pairs were submitted. One that goes before anybody asked for its result gives up the pair.
    """

    def __init__(self, finish: Callable[[], Result], cancel: Callable[[], None] | None = None) -> None:
        """Takes what waits for the result or raises, and what gives up the pair; one of them is called, once."""
        self._finish: Callable[[], Result] | None = finish
        self._cancel = cancel
        self._unasked = weakref.finalize(self, _give_up, cancel) if cancel is not None else None
        self._result: Result | None = None
        self._error: BaseException | None = None

    @classmethod
    def failed(cls, error: Exception) -> PendingResult:
        """A pair that could not be started; ``result`` raises the error."""

        def fail() -> Result:
            raise error

        return cls(fail)

    def result(self) -> Result:
        """Waits for the result; a second call gives the same one.

        Raises:
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
            CancelledError: The pair was cancelled.
        """
        if self._finish is not None:
            finish = self._finish
            self._close()
            try:
                self._result = finish()
            except BaseException as error:
                self._error = error
                raise
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    @property
    def done(self) -> bool:
        """Whether the pair is over: its result is there, or it failed or was cancelled."""
        return self._result is not None or self._error is not None

    def cancel(self) -> None:
        """Gives up the pair if its result was not asked for; what it holds is free when this returns."""
        if self._finish is None:
            return
        cancel = self._cancel
        self._close()
        self._error = CancelledError("the pair was cancelled before its result was asked for")
        if cancel is not None:
            cancel()

    def _close(self) -> None:
        self._finish = self._cancel = None
        if self._unasked is not None:
            self._unasked.detach()


def _give_up(cancel: Callable[[], None]) -> None:
    """Cancels a pair whose ``PendingResult`` is gone; nobody is left to hear of an error."""
    with suppress(LDPError):
        cancel()


def cancel_all(pending: Iterable[PendingResult]) -> None:
    """Cancels several pairs; those whose result was asked for stay as they are."""
    for each in pending:
        each.cancel()


@contextmanager
def cancelled_on_error(pending: Iterable[PendingResult]) -> Iterator[None]:
    """Cancels pairs where the block raises."""
    try:
        yield
    except BaseException:
        cancel_all(pending)
        raise


class StageClock:
    """Seconds by stage on the host; a stage that is entered again adds to its time.

    Attributes:
        seconds: Stage -> seconds, in the order in which the stages were first entered.
    """

    def __init__(self) -> None:
        """Starts with no stage."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
