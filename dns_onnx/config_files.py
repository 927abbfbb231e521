"""Settings as TOML: files of the user, built-in recipes, and what a run writes down."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from dns_onnx.config import Config, parse_config
from dns_onnx.errors import ConfigError


def recipes() -> list[str]:
    """Names of the built-in recipes."""
    folder = resources.files("dns_onnx") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_recipe(name: str) -> Config:
    """A built-in recipe by name.

    Raises ConfigError, naming the recipes there are.
    """
    if name not in recipes():
        raise ConfigError(f"recipe '{name}': expected one of {', '.join(recipes())}")
    text = (resources.files("dns_onnx") / "recipes" / f"{name}.toml").read_text("utf-8")
    return parse_config(tomllib.loads(text), f"recipe {name}")


def load_config(path: str | Path) -> Config:
    """A configuration file in TOML.

    Raises ConfigError, naming the file, the key and what is allowed there.
    """
    try:
        return parse_config(tomllib.loads(Path(path).read_text("utf-8")), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a configuration in TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def to_toml(config: Config) -> str:
    """The whole configuration as a file that `load_config` reads back as the same."""
    values = config.model_dump(mode="json", exclude_none=True)
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    rules = values.pop("layer")
    lines = [_toml_line(k, v) for k, v in values.items() if k not in tables]
    named = [(f"[{k}]", table) for k, table in tables.items()]
    for head, table in [*named, *(("[[layer]]", rule) for rule in rules)]:
        lines += ["", head, *(_toml_line(k, v) for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _toml_line(key: str, value: Any) -> str:
    # JSON's numbers, strings, booleans and lists are TOML's too, but for DEL in a string
    return f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
