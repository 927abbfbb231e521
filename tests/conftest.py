from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds data/ and models/: real models and data, never in the repository."""
    root = os.environ.get("DNS_ONNX_DATA")
    if not root:
        pytest.skip("DNS_ONNX_DATA is not set: it names the folder with data/ and models/")
    return Path(root)


@pytest.fixture(scope="session")
def paper_models(data_root: Path) -> Path:
    return data_root / "models" / "dns_paper"


@pytest.fixture(scope="session")
def mnist(data_root: Path) -> Path:
    return data_root / "data" / "mnist"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch sees no CUDA device here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
