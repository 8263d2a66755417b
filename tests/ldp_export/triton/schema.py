"""Triton's published schema of a model's config."""

import functools
import json
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

SCHEMA = Path(__file__).with_name("triton_model_config.json")


@functools.cache
def _config_class() -> Any:
    """The message class of the schema."""
    file = json_format.ParseDict(
        json.loads(SCHEMA.read_text(encoding="utf-8"))["descriptor"], descriptor_pb2.FileDescriptorProto()
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse_config(text: str) -> Any:
    """The message of a config's text; ``text_format.ParseError`` where the schema does not allow it."""
    return text_format.Parse(text, _config_class()())


def read_config(model: Path) -> Any:
    """The config of a model's folder."""
    return parse_config((model / "config.pbtxt").read_text(encoding="utf-8"))
