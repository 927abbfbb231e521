"""Python objects that a user names as `package.module:name`."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from dns_onnx.errors import DnsOnnxError


def is_entry_point(text: str) -> bool:
    """Whether a text has the form `package.module:name`."""
    return re.fullmatch(r"[\w.]+:[\w.]+", text) is not None


def load_entry_point(name: str, error: type[DnsOnnxError]) -> Any:
    """The object that `package.module:name` names; modules of the working directory count.

    Raises `error` where it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the working directory, as `python -m` has it
    try:
        target: Any = importlib.import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, SyntaxError) as cause:
        raise error(f"{name}: expected an importable function: {cause}") from None
    return target
