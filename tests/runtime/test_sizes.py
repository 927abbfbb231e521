from __future__ import annotations

import gzip

import numpy as np
import pytest

from dns_onnx.runtime import sizes


@pytest.mark.parametrize(
    ("size", "nnz", "bits", "expected"),
    [
        (1000, 500, 32, (1000 + 500 * 32) / 8),  # one bit an entry where half is kept
        (1000, 0, 32, 0.0),
        (1000, 1000, 16, 2000.0),
        (0, 0, 32, 0.0),
        (100_000, 1000, 32, (100_000 * 0.0807931 + 32_000) / 8),
    ],
)
def test_entropy_bound(size: int, nnz: int, bits: int, expected: float) -> None:
    assert sizes.entropy_bound(size, nnz, bits) == pytest.approx(expected, rel=1e-5)


def test_gzip_bytes_is_the_size_of_a_gzip_file() -> None:
    pieces = [bytes(1000), np.random.default_rng(0).bytes(500), bytes(3000)]
    assert sizes.gzip_bytes(pieces) == len(gzip.compress(b"".join(pieces), 6))
