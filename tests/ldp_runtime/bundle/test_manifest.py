import msgspec
import pytest

from ldp_runtime.bundle.manifest import BlurMapSpec
from ldp_runtime.errors import BundleError
from tests.ldp_runtime.tiny_bundle import PATCH, tiny_manifest


def test_dense_blur_logits_are_the_default() -> None:
    manifest = tiny_manifest()
    assert manifest.blur_map == BlurMapSpec("dense", "logits", None)
    assert "blur_map" not in manifest.to_json()
    assert (manifest.reads_blur_map, manifest.blur_cell) == (True, PATCH)
    assert manifest.require_clip() is manifest.clip
    assert manifest.graph_names("clip") == ({"stereo", "center"}, {"stereo_features", "center_features"})
    assert manifest.graph_names("deblur") == ({"pair", "blur_logits"}, {"restored"})


@pytest.mark.parametrize(("ensemble", "canvas"), [("dp-aware", "stereo"), (7, "stereo"), ("blur-aware", "center")])
def test_the_clip_graph_has_the_inputs_that_its_prompts_query(ensemble: str | int, canvas: str) -> None:
    manifest = msgspec.structs.replace(tiny_manifest(), ensemble=ensemble)
    assert manifest.canvases == (canvas,)
    assert manifest.graph_names("clip") == ({canvas}, {f"{canvas}_features"})


def test_a_blur_map_from_patches() -> None:
    manifest = msgspec.structs.replace(tiny_manifest(), blur_map=BlurMapSpec("patch", "map", 40))
    assert manifest.blur_cell == 40
    assert manifest.graph_names("clip") == ({"patches"}, {"features"})
    assert manifest.graph_names("deblur") == ({"pair", "blur_map"}, {"restored"})


def test_a_network_that_reads_no_blur_map() -> None:
    manifest = tiny_manifest(clip=False)
    assert (manifest.reads_blur_map, manifest.blur_cell) == (False, 1)
    assert manifest.graph_names("deblur") == ({"pair"}, {"restored"})
    with pytest.raises(BundleError) as caught:
        manifest.require_clip()
    assert str(caught.value) == (
        "bundle 'tiny' has no blur map: its network reads none; choose a bundle whose network reads one"
    )
