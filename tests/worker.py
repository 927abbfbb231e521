"""One process of a run: what its masks were at every step, and what its weights are in the end.

Usage: python worker.py FOLDER OUT [--resume].  Started by the tests, with or without torchrun.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from dns_onnx import compress, distributed
from dns_onnx.config_files import load_config
from dns_onnx.errors import NotMain
from dns_onnx.masks import is_divided, whole
from dns_onnx.surgery import Surgery
from dns_onnx.targets import TargetSurgery


def main(folder: Path, out: str, *more: str) -> None:
    masks: list[str] = []
    steps = {kind: kind.step for kind in (Surgery, TargetSurgery)}

    def noted(surgery: Surgery, iteration: int) -> list[str]:
        fired = steps[type(surgery)](surgery, iteration)
        divided = any(is_divided(t.mask) for layer in surgery for t in layer.tensors)
        assert divided == (shard and distributed.size() > 1)
        digest = hashlib.sha256()
        for tensor in (t for layer in surgery for t in layer.tensors):
            digest.update(whole(tensor.mask).numpy().tobytes())
        masks.append(digest.hexdigest())
        return fired

    Surgery.step = TargetSurgery.step = noted
    config = load_config(folder / "config.toml")
    shard = config.train.shard
    with distributed.processes("cpu", config.data.batch):
        rank = distributed.rank()
        try:
            compress(folder / "net.onnx", folder / out, train=f"{folder}/train.npz", config=config,
                     resume="--resume" in more, bench_seconds=0.01)  # fmt: skip
        except NotMain:
            pass
        (folder / f"{out}.{rank}.json").write_text(json.dumps(masks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
