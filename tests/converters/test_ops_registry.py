"""Random numbers, and what the registry refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.registry import op

from .importer_models import floats, imported, node_model


@pytest.mark.parametrize(
    ("op_type", "attributes", "mean", "deviation"),
    [
        ("RandomNormal", {"mean": 2.0, "scale": 3.0}, 2.0, 3.0),
        ("RandomUniform", {"low": 1.0, "high": 3.0}, 2.0, 2 / 12**0.5),
    ],
)
def test_random(op_type: str, attributes: dict[str, float], mean: float, deviation: float) -> None:
    model, _ = node_model(op_type, [], opset=17, shape=[100, 100], seed=1.0, **attributes)
    module = import_model(model)
    draws = module()
    assert abs(float(draws.mean()) - mean) < 0.1
    assert abs(float(draws.std()) - deviation) < 0.1
    torch.testing.assert_close(module(), draws)


def test_dropout_trains_only_when_asked() -> None:
    x = floats(20, 20, low=1.0, high=2.0)
    model, feeds = node_model(
        "Dropout", [x, np.float32(0.5), np.array(True)], opset=13, outputs=2, weights=(1, 2)
    )
    y, mask = imported(model, feeds)
    assert 0.3 < mask.mean() < 0.7
    np.testing.assert_allclose(y, np.where(mask, x * 2, 0))


def test_a_second_function_for_a_version_is_an_error() -> None:
    with pytest.raises(ValueError, match="registered twice"):

        @op("Relu", 14)
        def again(x: torch.Tensor) -> torch.Tensor:
            return x


def test_a_version_that_the_schema_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no schema version 12"):

        @op("Relu", 12)
        def missing(x: torch.Tensor) -> torch.Tensor:
            return x


def test_a_parameter_list_that_cannot_take_the_attributes_is_an_error() -> None:
    with pytest.raises(ValueError, match="alpha"):

        @op("LeakyRelu", 16)
        def incomplete(x: torch.Tensor) -> torch.Tensor:
            return x
