"""A finished compression as one HTML page that needs nothing but a browser."""

from __future__ import annotations

from pathlib import Path

from dns_onnx.config_files import to_toml
from dns_onnx.errors import ExportError
from dns_onnx.page.render import render
from dns_onnx.page.story import gather
from dns_onnx.result import Result


def write(result: Result, folder: Path, command: str | None = None) -> None:
    """Write index.html, and the settings as config.toml, into `folder`, made where it is missing.

    command: the line that started the run.
    Raises ExportError where the disk refuses.
    """
    text = render(gather(result, command))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text(text, "utf-8")
        (folder / "config.toml").write_text(to_toml(result.config), "utf-8")
    except OSError as error:
        raise ExportError(f"{folder}: the page cannot be written: {error}") from error
