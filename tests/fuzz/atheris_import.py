"""Coverage-guided fuzzing of the reader and the importer, outside the tests.

In an environment that has atheris too: `python -m tests.fuzz.atheris_import FOLDER -runs=100000`.
FOLDER keeps what reached new code; an empty one is filled with small models first.  Options after
it are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris
from onnx import ModelProto

with atheris.instrument_imports(include=["dns_onnx.converters"]):
    from dns_onnx.converters.importer import import_model
    from dns_onnx.converters.reader import read_model
from dns_onnx.errors import DnsOnnxError

from .loop import sandbox, watch
from .models import built, official
from .mutations import damage


def seed(folder: Path) -> None:
    """Fill an empty folder with small models."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for name, model in [*built(), *official()[::10]]:
            (folder / name).write_bytes(model.SerializeToString())


def mutate(data: bytes, most: int, number: int) -> bytes:
    """Half of the time a fault in the structure, otherwise libFuzzer's own flips."""
    if number % 2:
        try:
            broken = damage(ModelProto.FromString(data), number)
            return broken if len(broken) <= most else data
        except Exception:  # no model any more
            return atheris.Mutate(data, most)
    return atheris.Mutate(data, most)


def main() -> None:
    """Fuzz until libFuzzer's options say to stop."""
    corpus = Path(sys.argv[1])
    seed(corpus)
    root = Path(tempfile.mkdtemp())
    path = sandbox(root) / "model.onnx"
    watch(root)
    warnings.simplefilter("ignore")

    def once(data: bytes) -> None:
        path.write_bytes(data)
        for take in (read_model, import_model):
            try:
                take(path)
            except DnsOnnxError as error:
                if isinstance(error.__cause__, MemoryError):
                    raise error.__cause__ from error

    options = ["-max_len=65536", "-timeout=30", "-rss_limit_mb=6000", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], str(corpus), *options], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
