"""The same surgery on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dns_onnx import compress
from dns_onnx.config import Preprocess, parse_config
from dns_onnx.data import ArrayDataset
from dns_onnx.feed import Feed
from dns_onnx.journal import Progress
from dns_onnx.masks import Masked
from dns_onnx.preprocess import InputSpec
from dns_onnx.result import Result
from dns_onnx.surgery import LayerSurgery, Schedule

pytestmark = pytest.mark.gpu


def test_masks_are_the_same_as_on_the_cpu() -> None:
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    masks = []
    for device in ("cpu", "cuda"):
        holder = Masked("w", weight.clone().to(device))
        holder.attach_mask()
        layer = LayerSurgery("layer", [holder], Schedule(1.0))
        for i in range(3):
            layer.update(i)
            with torch.no_grad():
                holder.weight.mul_(1.3)
        masks.append(holder.mask.cpu())
    assert torch.equal(*masks)


def test_a_surgery_step_does_not_wait_for_the_device() -> None:
    holder = Masked("w", torch.randn(300, 200, device="cuda"))
    holder.attach_mask()
    layer = LayerSurgery("layer", [holder], Schedule(1.0))
    layer.update(0)  # measures mu and std, which waits, once
    try:
        torch.cuda.set_sync_debug_mode("error")
        layer.update(1)
        holder().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rows_that_stay_on_the_device_are_the_same() -> None:
    x = np.random.default_rng(0).random((64, 1, 6, 6)).astype(np.float32)
    spec = InputSpec("x", np.dtype("f4"), (None, 1, 6, 6))
    data = ArrayDataset([spec], {"x": x}, np.arange(64), Preprocess(), "t")
    config = parse_config({"data": {"batch": 16, "shift": 1}}, "test")
    on_cpu, on_cuda = (Feed(data, config, torch.device(d)) for d in ("cpu", "cuda"))
    assert on_cuda.resident is not None
    for i in range(6):
        (a, la), (b, lb) = on_cpu(i), on_cuda(i)
        assert torch.equal(a[0], b[0].cpu())
        assert torch.equal(la["labels"], lb["labels"].cpu())


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    "train",
    [{}, {"precision": "bfloat16"}, {"precision": "float16"}, {"compile": True}],
    ids=["float32", "bfloat16", "float16", "compiled"],
)
def test_compress_on_cuda(small: Path, train: dict) -> None:
    values = {"train": {"iterations": 200, **train}, "surgery": {"c_rate": 0.8}}
    config = parse_config(values, "test")
    result = compress(
        small / "net.onnx", small / "out.onnx", train=f"{small}/train.npz", config=config,
        device="cuda", bench_seconds=0.05,
    )  # fmt: skip
    assert result.device == "cuda"
    assert result.check.ok, result.check.problems


def test_a_search_cuts_fits_and_trains_on_cuda(small: Path) -> None:
    values = {"train": {"iterations": 100}, "target": {"max_drop": 2, "trials": 3}}
    result = compress(
        small / "net.onnx", small / "out.onnx", train=f"{small}/train.npz",
        config=parse_config(values, "test"), device="cuda", bench_seconds=0.05,
    )  # fmt: skip
    assert {t.iterations for t in result.trials} == {0, 100}
    assert any(t.accepted and t.ratio > 2 for t in result.trials)
    assert result.check.ok, result.check.problems


def test_convolutions_go_on_from_a_checkpoint(images: Path) -> None:
    """Fused solvers refuse momenta that lie in memory in another way than the weights."""

    def stop(progress: Progress) -> None:
        if progress.iteration == 100:
            raise KeyboardInterrupt

    def run(**options) -> Result:
        values = {"train": {"iterations": 200, "checkpoint_seconds": 1e-6},
                  "surgery": {"c_rate": 0.5}}  # fmt: skip
        return compress(
            images / "net.onnx", images / "out.onnx", train=f"{images}/train.npz",
            config=parse_config(values, "test"), device="cuda", bench_seconds=0.05, **options,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(observe=stop)
    result = run(resume=True)
    assert result.started_at > 0
    assert result.check.ok, result.check.problems
