from __future__ import annotations

import pytest

from dns_onnx.config_files import load_config, load_recipe, recipes
from dns_onnx.errors import ConfigError


def test_the_authors_recipes_ship() -> None:
    assert {"dns2016-lenet5", "dns2016-lenet300100"} <= set(recipes())


@pytest.mark.parametrize(
    ("recipe", "iterations", "iter_stop", "c_rates"),
    [
        ("dns2016-lenet5", 16_000, 14_000, {"conv1": 2, "conv2": 3, "ip1": 4, "ip2": 2.5}),
        ("dns2016-lenet300100", 25_000, 20_000, {"ip1": 5, "ip2": 3, "ip3": 3}),
    ],
)
def test_settings_of_the_authors(
    recipe: str, iterations: int, iter_stop: int, c_rates: dict[str, float]
) -> None:
    c = load_recipe(recipe)
    assert (c.data.batch, c.data.shuffle, c.preprocess.scale) == (64, False, 1 / 256)
    s = c.solver
    assert (s.type, s.lr, s.policy, s.gamma, s.power) == ("sgd", 0.01, "inv", 1e-4, 0.75)
    assert (s.momentum, s.weight_decay, s.bias_lr) == (0.9, 5e-4, 2)
    assert c.train.iterations == iterations
    for name, c_rate in c_rates.items():
        layer = c.layer_settings(name, f"{name}.weight")
        assert (layer.c_rate, layer.iter_stop, layer.gamma, layer.power) == (
            c_rate, iter_stop, 1e-4, 1,
        )  # fmt: skip
        assert layer.ramp_iters == 0


def test_every_recipe_is_valid_and_bears_its_file_name() -> None:
    for name in recipes():
        assert load_recipe(name).name == name


def test_missing_file_and_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config("absent.toml")
    with pytest.raises(ConfigError, match=r"expected one of .*dns2016-lenet5"):
        load_recipe("lenet6")
