"""The CLIP of these tests, and no downloads."""

import open_clip
import pytest
import torch

from ldp_export.clip import LoadedClip, load_clip
from ldp_export.network.randomise import randomise
from tests.ldp_export.clip.small_clip import write_config
from tests.ldp_export.tensors import noise


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(config: str) -> LoadedClip:
    loaded = load_clip(config)
    randomise(loaded.model)
    with torch.no_grad():  # embeddings of places that matter, so that a wrong resize shows
        loaded.model.visual.positional_embedding.copy_(noise(17, 32, seed=1))
    return loaded


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the test suite does not download")

    monkeypatch.setattr(open_clip, "create_model", refuse)
