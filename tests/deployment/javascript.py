"""The matrix's JavaScript consumers: Node, wasm under Node, and a page in headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from .job import Job, Outcome

HERE = Path(__file__).parent / "js"
PACKAGES = HERE / "node_modules"
SECONDS = 300

_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
# without the last flags it looks for its maker's servers at every start
_CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


def missing_node(package: str) -> str:
    """Why models cannot run in this npm package here; empty if they can."""
    if shutil.which("node") is None:
        return "Node.js is not installed"
    if not (PACKAGES / package).is_dir():
        return f"{package} is not installed: `npm ci --ignore-scripts` in {HERE.name}/"
    return ""


def missing_chromium() -> str:
    """Why no page can be opened here; empty if one can."""
    if _chromium() is None:
        return "Chromium is not installed"
    return missing_node("onnxruntime-web")


def run_node(package: str, jobs: Sequence[Job]) -> list[Outcome]:
    """All models in one Node process."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "jobs.json", Path(folder) / "results.json"
        asked.write_text(json.dumps([{"file": str(job.path), **_feed(job)} for job in jobs]))
        command = ["node", str(HERE / "node.mjs"), package, str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return _outcomes(json.loads(answered.read_text()))


def run_chromium(jobs: Sequence[Job]) -> list[Outcome]:
    """All models in one page, served on localhost with onnxruntime-web's wasm files."""
    server = _Server(jobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            page = f"http://127.0.0.1:{server.server_port}/page.html"
            command = [str(_chromium()), *_CHROMIUM, f"--user-data-dir={profile}", page]
            browser = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            try:
                if not server.answered.wait(SECONDS):
                    browser.kill()
                    raise RuntimeError(f"the page gave no result: {browser.communicate()[1]}")
            finally:
                browser.kill()
                browser.communicate()
    finally:
        server.shutdown()
        server.server_close()
    return _outcomes(server.results)


class _Server(ThreadingHTTPServer):
    """Serves the page, the packages and the models; `answered` is set once `results` are in."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answered = threading.Event()
        self.results: list[dict[str, Any]] = []
        self.files = {f"/models/{i}.onnx": job.path for i, job in enumerate(jobs)}
        self.jobs = [
            {"address": address, **_feed(job)}
            for address, job in zip(self.files, jobs, strict=True)
        ]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        if name == "/jobs.json":
            return self._send(json.dumps(self.server.jobs).encode(), "application/json")
        folder = PACKAGES / "onnxruntime-web" / "dist" if name.startswith("/ort/") else HERE
        path = self.server.files.get(name, folder / Path(name).name)
        if not path.is_file():
            return self.send_error(404)
        self._send(path.read_bytes(), _TYPES.get(path.suffix, "application/octet-stream"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.results = json.loads(body)
        self._send(b"", "text/plain")
        self.server.answered.set()

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def _feed(job: Job) -> dict[str, Any]:
    (x,) = job.inputs.values()
    return {"dims": x.shape, "data": x.reshape(-1).tolist()}


def _outcomes(results: Sequence[dict[str, Any]]) -> list[Outcome]:
    return [
        r["error"] if "error" in r else np.array(r["data"], np.float32).reshape(r["dims"])
        for r in results
    ]
