"""The com.microsoft operators, one by one, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from dns_onnx.converters.dtypes import to_torch
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.registry import registered
from dns_onnx.errors import ModelError
from dns_onnx.masks import holders

from .cases.com_microsoft import CASES
from .importer_models import assert_same

MICROSOFT = "com.microsoft"
# Written by the optimiser for other devices, or under an older name: no CPU kernel of their own.
NO_KERNEL = {"BiasAdd", "TransposeMatMul", "SimplifiedLayerNormalization"}
# How many outputs are compared, where ONNX Runtime leaves a part of the others as it was allocated.
COMPARED = {"GroupQueryAttention-shared": 1}


def _name(key: str) -> str:
    return key.split("-")[0]


def _model(key: str, held: Sequence[int] = ()) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    how = {"domain": MICROSOFT, "held": held, "shown": COMPARED.get(key)}
    return CASES[key].model(_name(key), 21, **how)


@pytest.mark.parametrize("key", CASES)
def test_it_equals_onnx_runtime(key: str) -> None:
    assert (MICROSOFT, _name(key), 1) in registered()
    assert_same(*_model(key), rtol=1e-3, atol=1e-4)


def test_every_registered_operator_has_a_case() -> None:
    names = {name for domain, name, _ in registered() if domain == MICROSOFT}
    assert names - {_name(key) for key in CASES} == NO_KERNEL


DIFFERENTIABLE = [
    key
    for key, case in CASES.items()
    if registered()[MICROSOFT, _name(key), 1].differentiable
    and any(a is not None and np.asarray(a).dtype == np.float32 for a in case.inputs[:3])
    and _name(key) != "QuantizeLinear"
]


@pytest.mark.parametrize("key", DIFFERENTIABLE)
def test_gradients_reach_data_and_weights(key: str) -> None:
    operands = enumerate(CASES[key].inputs)
    held = [i for i, a in operands if i and a is not None and np.asarray(a).ndim > 1]
    model, feeds = _model(key, held)
    module = import_model(model)
    values = [to_torch(np.array(feed)) for feed in feeds]
    data = [v.requires_grad_() for v in values if v.is_floating_point()]
    result = module(*values)
    (result[0] if isinstance(result, tuple) else result).square().sum().backward()
    trained = [h.weight for h in holders(module).values() if h.weight.requires_grad]
    assert data or trained
    for point in (*data, *trained):
        assert isinstance(point.grad, torch.Tensor)
        assert bool((point.grad != 0).any())


def test_an_attribute_that_only_other_devices_know_is_refused() -> None:
    model, _ = _model("Attention")
    model.graph.node[0].attribute.append(helper.make_attribute("do_rotary", 1))
    with pytest.raises(ModelError, match="do_rotary = 1; only 0"):
        import_model(model)
