from __future__ import annotations

from pathlib import Path

import pytest

from dns_onnx.config import Config, parse_config
from dns_onnx.config_files import load_config, load_recipe
from dns_onnx.errors import ConfigError


def test_later_rules_override_earlier_ones_and_leave_the_rest() -> None:
    config = parse_config(
        {
            "surgery": {"c_rate": 1.5, "gamma": 1e-3},
            "layer": [
                {"match": "conv*", "c_rate": 2},
                {"match": "conv2.weight", "prune_bias": False, "weight_mask": "nonzero"},
                {"match": "head", "prune": False},
            ],
        },
        "x",
    )
    assert config.layer_settings("conv1", "conv1.weight").c_rate == 2
    second = config.layer_settings("conv2", "conv2.weight")
    assert (second.c_rate, second.prune_bias, second.weight_mask) == (2, False, "nonzero")
    assert second.gamma == 1e-3
    assert not config.layer_settings("head", "w").prune
    assert config.layer_settings("other", "w").c_rate == 1.5


def test_iter_stop_defaults_to_seven_tenths() -> None:
    config = parse_config({"train": {"iterations": 1000}}, "x")
    assert config.layer_settings("any").iter_stop == 700


def test_a_given_c_rate_is_constant() -> None:
    given = parse_config({"surgery": {"c_rate": 1.0}}, "x")
    assert given.has_thresholds
    assert given.layer_settings("any").ramp_iters == 0
    assert not parse_config({}, "x").has_thresholds


@pytest.mark.parametrize(
    ("target", "density"),
    [({}, None), ({"compression": 50}, 0.02), ({"sparsity": 0.98}, 0.02), ({"max_drop": 1}, None)],
)
def test_density_of_a_target(target: dict, density: float | None) -> None:
    found = parse_config({"target": target}, "x").target.density
    assert found == (None if density is None else pytest.approx(density))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target": {"compression": 9, "sparsity": 0.5}}, "compression or sparsity, got both"),
        ({"target": {"compression": 9}, "surgery": {"c_rate": 1}}, "thresholds .* or a target"),
        ({"surgery": {"c_rate": 1}, "layer": [{"match": "a", "sparsity": 0.5}]}, "got both"),
        ({"target": {"compression": 1}}, "target.compression"),
        ({"target": {"compression": 9, "margin": 1}}, "a margin for a budget"),
        ({"target": {"margin": 1}, "surgery": {"c_rate": 1}}, "a margin for a budget"),
        ({"target": {"margin": -1}}, "target.margin"),
    ],
)
def test_contradicting_goals_are_refused(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(values, "x")


def test_scaling_leaves_unsaid_what_was_not_said() -> None:
    scaled = parse_config({"solver": {"lr": 0.1}}, "x").scaled(100)
    assert "tail" not in scaled.solver.model_fields_set
    assert scaled.train.iterations == 100


def test_a_schedule_is_scaled_as_a_whole() -> None:
    scaled = load_recipe("lenet5").scaled(3000)
    assert (scaled.train.iterations, scaled.solver.tail) == (3000, 1000)
    layer = scaled.layer_settings("ip1")
    assert (layer.iter_stop, layer.ramp_iters, layer.c_rate) == (2000, 1400, 7.2)


def test_brackets_in_names_are_no_pattern() -> None:
    config = parse_config({"layer": [{"match": "blocks[0].w*", "c_rate": 3}]}, "x")
    assert config.layer_settings("n", "blocks[0].weight").c_rate == 3
    assert config.layer_settings("n", "blocks0.weight").c_rate == 1.0


def test_rules_that_name_no_layer_are_found() -> None:
    config = parse_config({"layer": [{"match": "conv*"}, {"match": "fc9"}]}, "x")
    assert config.unused_rules([("conv1", "w1"), ("fc1", "w2")]) == ["fc9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data]\nbatchh = 1", r"c\.toml: data\.batchh: unknown key; allowed here: batch, holdout"),
        ("speed = 1", r"c\.toml: speed: unknown key; allowed here: name, seed"),
        ("[solver]\npolicy = 'warm'", r"c\.toml: solver\.policy: Input should be 'fixed', 'step'"),
        ("[data]\nbatch = 'many'", r"c\.toml: data\.batch: .*integer.*got 'many'"),
        ("[[layer]]\nc_rate = 1", r"c\.toml: layer\.0\.match: Field required"),
        ("[solver]\nlr = 0", r"c\.toml: solver\.lr: .*greater than 0, got 0"),
        ("seed = -1", r"c\.toml: seed: .*greater than or equal to 0, got -1"),
        ("[solver]\ntail = 30000", r"c\.toml: solver\.tail: expected at most train\.iterations"),
        ("[preprocess]\nstd = [0.5, 0]", r"c\.toml: preprocess: std must be positive"),
        ("data = [", r"c\.toml: not valid TOML"),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config("c.toml")


def test_settings_survive_json() -> None:
    config = load_recipe("dns2016-lenet5")
    assert Config.model_validate(config.model_dump(mode="json")) == config
