"""The JSON of the service's answers, as its OpenAPI description has it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """An error, as in RFC 9457."""

    type: str = Field(default="about:blank", description="Always about:blank: title and status say the kind")
    title: str = Field(description="The status in words")
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What was expected, what was given, and the fix")


class Report(BaseModel):
    """How a pair was restored."""

    width: int = Field(description="px")
    height: int = Field(description="px")
    bits: int = Field(description="Bits per sample: 8 or 16")
    seconds: dict[str, float] = Field(description="Time by stage, in order")
    bundle: str = Field(description="Name of the bundle")
    backend: str
    precision: str
    tiles: int = Field(description="How many tiles the image was restored in")
    scale: float = Field(description="Scale that the pair was restored at: 1, 0.5 or 0.25")
    blur_map: bool = Field(description="Whether there is a blur map: some networks read none")
    warnings: list[str] = Field(description="What seems wrong and what was corrected, a sentence each")


class RestorationStatus(BaseModel):
    """The state of a restoration."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    position: int | None = Field(default=None, description="While it waits: 1 is the next")
    progress: float | None = Field(default=None, description="While it runs: share that is done, 0 to 1")
    report: Report | None = Field(default=None, description="Once it is done")
    links: dict[str, str] = Field(default={}, description="Once it is done: name of a picture -> its path")
    problem: Problem | None = Field(default=None, description="If it failed")


class Health(BaseModel):
    """The state of the service."""

    status: Literal["ready", "stopping"]
    version: str
    waiting: int = Field(description="Pairs that wait for a worker")
    running: int = Field(description="Pairs that are being restored")


class Limits(BaseModel):
    """The limits of the service."""

    max_upload: int = Field(description="Largest request body in bytes")
    max_pixels: int = Field(description="Largest view in pixels")
    time_limit: float = Field(description="Seconds from the end of the upload to the result")
    keep_seconds: float = Field(description="How long results are kept")
