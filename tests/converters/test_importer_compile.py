"""Imported real models through torch.compile with its own code generator."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dns_onnx.converters.importer import import_model

# an upscaler with PixelShuffle, a residual net, a vision transformer
MODELS = {
    "super_resolution_pytorch.onnx": (1, 1, 224, 224),
    "vnn22_sri_resnet_a.onnx": (1, 3, 32, 32),
    "vnn23_vit_cifar10_pgd_2_3_16.onnx": (1, 3, 32, 32),
}


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")),
    reason="the code generator of torch needs a C++ compiler",
)
@pytest.mark.parametrize("file", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_inductor_gives_the_same_outputs_and_gradients(file: str, data_root: Path) -> None:
    module = import_model(data_root / "models" / file).eval()
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random(MODELS[file], np.float32))

    def outputs_and_gradient(run: torch.nn.Module) -> list[torch.Tensor]:
        module.zero_grad()
        result = run(x)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        torch.stack([r.square().mean() for r in results]).sum().backward()
        # in one piece: a part that is zero but for rounding has no scale of its own
        parts = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return [*(r.detach() for r in results), torch.cat(parts)]

    wanted = outputs_and_gradient(module)
    got = outputs_and_gradient(torch.compile(module, backend="inductor", fullgraph=True))
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * max(scale, 1e-6))
