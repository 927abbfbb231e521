"""Prune any ONNX model by Dynamic Network Surgery and get an ONNX model back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dns_onnx.config import Config, parse_config
    from dns_onnx.config_files import load_config, load_recipe
    from dns_onnx.converters.exporter import convert, export_model
    from dns_onnx.converters.importer import import_model
    from dns_onnx.pipeline import compress
    from dns_onnx.result import Result

__all__ = [
    "Config",
    "Result",
    "compress",
    "convert",
    "export_model",
    "import_model",
    "load_config",
    "load_recipe",
    "parse_config",
]

_HOMES = {
    "Config": "dns_onnx.config",
    "Result": "dns_onnx.result",
    "compress": "dns_onnx.pipeline",
    "convert": "dns_onnx.converters.exporter",
    "export_model": "dns_onnx.converters.exporter",
    "import_model": "dns_onnx.converters.importer",
    "load_config": "dns_onnx.config_files",
    "load_recipe": "dns_onnx.config_files",
    "parse_config": "dns_onnx.config",
}


def __getattr__(name: str) -> Any:
    # loaded on first use, so that `import dns_onnx.runtime` does not bring in torch
    if name == "runtime":
        return import_module("dns_onnx.runtime")
    if name not in _HOMES:
        raise AttributeError(f"module 'dns_onnx' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
