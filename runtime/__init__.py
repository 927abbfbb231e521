"""Where pruned models run; imports neither torch nor the surgery."""

from dns_onnx.runtime.bench import Timing, bench
from dns_onnx.runtime.check import Check, check
from dns_onnx.runtime.library import library_path
from dns_onnx.runtime.session import session

__all__ = ["Check", "Timing", "bench", "check", "library_path", "session"]
