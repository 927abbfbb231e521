"""The fuzz harness of the kernels, built with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "runtime"
ROUNDS = 8000
BUILD_SECONDS, RUN_SECONDS = 600, 300


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cmake") is None or not (SOURCES / "CMakeLists.txt").is_file():
        pytest.skip("needs cmake and a source checkout")
    build = tmp_path_factory.mktemp("fuzz")
    configure = ["cmake", "-S", str(SOURCES), "-B", str(build), "-DDNS_ONNX_FUZZ=ON",
                 "-DDNS_ONNX_SANITIZE=address,undefined"]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(build), "--target", "dns_onnx_fuzz"]):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
        )
        if done.returncode != 0:
            pytest.skip(f"no sanitizer build here: {done.stderr.strip()[-200:]}")
    program = build / "dns_onnx_fuzz"
    if not program.is_file():
        pytest.skip("no C++ compiler")
    return program


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "avx2", "avx512"])
def test_mutated_layers_are_right_or_refused(harness: Path, kernels: str) -> None:
    done = subprocess.run(
        [str(harness), str(ROUNDS), "1"], env={**os.environ, "DNS_ONNX_KERNELS": kernels},
        capture_output=True, text=True, check=False, timeout=RUN_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{ROUNDS} rounds" in done.stdout
