"""Mixed precision trains float32 weights, and resumes with the scale that it had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dns_onnx import compress
from dns_onnx.checkpoint import latest
from dns_onnx.config import Config, parse_config
from dns_onnx.errors import ConfigError
from dns_onnx.journal import Progress
from dns_onnx.precision import Precision
from dns_onnx.result import Result


def config(**train: object) -> Config:
    return parse_config(
        {"data": {"batch": 16}, "solver": {"lr": 0.05, "policy": "fixed"},
         "train": {"iterations": 200, "eval_every": 50, "checkpoint_seconds": 1e-6, **train},
         "surgery": {"c_rate": 0.8, "iter_stop": 120}}, "test",
    )  # fmt: skip


def run(folder: Path, out: str, settings: Config, **options) -> Result:
    return compress(folder / "net.onnx", folder / out, train=f"{folder}/train.npz",
                    eval=f"{folder}/test.npz", config=settings, bench_seconds=0.01,
                    **options)  # fmt: skip


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fewer_bits_reach_what_float32_does(small: Path, precision: str) -> None:
    result = run(small, "out.onnx", config(precision=precision))
    assert result.check.ok, result.check.problems
    assert result.check.kept < 0.6 * result.check.total
    assert result.check.metric.after >= 0.9
    tensors = latest(result.run_dir).tensors
    weights = {t.dtype for name, t in tensors.items() if name.startswith("weight.")}
    assert weights == {torch.float32}


def test_a_resumed_run_in_float16_is_bit_identical(small: Path) -> None:
    def stop(p: Progress) -> None:
        if p.iteration == 100:
            raise KeyboardInterrupt

    settings = config(precision="float16")
    run(small, "whole.onnx", settings)
    with pytest.raises(KeyboardInterrupt):
        run(small, "cut.onnx", settings, observe=stop)
    assert latest(small / "cut.run").state["scale"]["scale"] > 1
    run(small, "cut.onnx", settings, resume=True)
    assert (small / "cut.onnx").read_bytes() == (small / "whole.onnx").read_bytes()


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    precision = Precision("float16", torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for gradient, moves in ((1.0, True), (float("inf"), False)):
        before, scale = weight.detach().clone(), precision.scaler.get_scale()
        optimizer.zero_grad()
        precision.backward((weight * gradient).sum(), optimizer)
        assert bool(torch.isfinite(weight.grad).all())
        precision.scaler.step(optimizer)
        precision.scaler.update()
        assert (not torch.equal(weight, before)) == moves
        assert (precision.scaler.get_scale() < scale) != moves


def test_float32_scales_nothing() -> None:
    precision = Precision("float32", torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(3))
    precision.backward(weight.sum(), torch.optim.SGD([weight]))
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]
    assert precision.state() == {}
    precision.load_state({})
    with precision.context():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own
def test_a_compiled_graph_learns_the_same(small: Path) -> None:
    plain = run(small, "plain.onnx", config())
    compiled = run(small, "compiled.onnx", config(compile=True))
    assert compiled.check.ok, compiled.check.problems
    states = [latest(r.run_dir).tensors for r in (plain, compiled)]
    for name, weight in states[0].items():
        if name.startswith("weight."):
            torch.testing.assert_close(states[1][name], weight, atol=1e-3, rtol=1e-2)


def test_a_scaled_loss_wants_wide_weights(small: Path) -> None:
    model = onnx.load(small / "net.onnx")
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, small / "net.onnx")
    with pytest.raises(ConfigError, match=r"'fc1\.w' is float16 in the model itself; leave it"):
        run(small, "out.onnx", config(precision="float16"))
