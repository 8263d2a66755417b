import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldp_export.checkpoint import Checkpoint
from ldp_export.network import CONFIGS, ConfigError, LDPConfig
from ldp_export.network.config import PRIORS
from ldp_runtime.errors import LDPError

MODELS = Path(__file__).parents[3] / "models"


def valid(**changes: Any) -> LDPConfig:
    return LDPConfig(**{"name": "n", "width": 32, "encoder": (1, 1), "middle": 1, "decoder": (1, 1), **changes})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip_through_json(config: LDPConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    assert LDPConfig.from_dict(values) == config


def test_round_trip_keeps_what_is_not_set() -> None:
    config = valid(window=None, sca_cell=None, bpa=())
    values = json.loads(json.dumps(config.to_dict()))
    assert values["window"] is None
    assert LDPConfig.from_dict(values) == config


def test_names_are_the_keys() -> None:
    assert {name: config.name for name, config in CONFIGS.items()} == {
        n: n for n in ("nano", "small", "large", "fast", "fast-large")
    }


@pytest.mark.parametrize(
    ("name", "stride"), [("nano", 16), ("small", 16), ("large", 16), ("fast", 16), ("fast-large", 16)]
)
def test_inputs_are_multiples_of_32(name: str, stride: int) -> None:
    assert CONFIGS[name].stride == stride
    assert CONFIGS[name].multiple == 32


def test_stride_and_multiple() -> None:
    assert valid().stride == 4
    assert valid(stem=2).stride == 8
    assert valid(sca_cell=None).multiple == 4
    assert valid(sca_cell=64).multiple == 64


def test_unknown_keys_are_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown keys in the network configuration: depth, widht"):
        LDPConfig.from_dict({**CONFIGS["nano"].to_dict(), "widht": 3, "depth": 4})


def test_missing_keys_are_an_error() -> None:
    values = CONFIGS["nano"].to_dict()
    del values["middle"]
    with pytest.raises(ConfigError, match=r"incomplete network configuration: .*'middle'"):
        LDPConfig.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": (1,)}, r"encoder \(1, 1\) and decoder \(1,\) must have as many levels"),
        ({"encoder": (), "decoder": ()}, "at least one level"),
        ({"bpa": ("middle", "centre")}, "bpa may name encoder, middle and decoder, not centre"),
        ({"kernel": 6}, "must be odd, got 6"),
        ({"sca_cell": 6}, "sca_cell 6 must be a multiple of the network's stride 4"),
        ({"window": 5}, "a window of 5 positions is too small for a kernel of 7; it needs at least 6"),
        ({"head_dim": 24}, "head_dim 24 must divide"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"stem": 0}, "stem must be at least 1, got 0"),
        ({"sca_cell": 0}, "sca_cell must be at least 1, got 0"),
        ({"window": 0, "kernel": 1}, "window must be at least 1, got 0"),
        ({"kernel": -1}, "kernel must be at least 1, got -1"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"kernel_hidden": 0}, "kernel_hidden must be at least 1, got 0"),
    ],
)
def test_configs_of_no_network_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        valid(**changes)
    assert isinstance(caught.value, LDPError)
    assert "\n" not in str(caught.value)


def test_a_narrow_network_has_heads_as_wide_as_itself() -> None:
    assert valid(width=8, head_dim=32).head_dim == 32  # min(head_dim, channels) divides the channels


def test_configurations_of_before_load_unchanged() -> None:
    values = json.loads((MODELS / "checkpoints/ldp-nano/network.json").read_text(encoding="utf-8"))
    for name in ("prior", "ensemble"):
        values.pop(name, None)
    config = LDPConfig.from_dict(values)
    assert config == CONFIGS["nano"]
    assert (config.prior, config.ensemble) == ("bpa", "ens2")
    own = Checkpoint.open(MODELS / "checkpoints/ldp-nano").network().config
    assert replace(own, ensemble="ens2") == config


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("ensemble", ["ens2", "ens1-dp-aware", 7])
def test_variants_round_trip_through_json(prior: str, ensemble: str | int) -> None:
    config = replace(CONFIGS["small"], prior=prior, ensemble=ensemble)
    assert LDPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": "bap"}, "prior must be one of none, concat, sa, concat\\+sa, bpa, not 'bap'"),
        ({"prior": "sa", "bpa": ()}, "prior sa needs a place of bpa"),
        ({"prior": "concat+sa", "bpa": ()}, "prior concat\\+sa needs a place of bpa"),
        ({"ensemble": "ens3"}, "ensemble must be one of ens2, .* or a prompt from 0 to 7, not 'ens3'"),
        ({"ensemble": 8}, "or a prompt from 0 to 7, not 8"),
        ({"ensemble": -1}, "not -1"),
    ],
)
def test_configs_of_no_variant_are_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        valid(**changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
