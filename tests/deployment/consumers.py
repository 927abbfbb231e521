"""Everything that the deployment matrix runs a pruned file in, one adapter each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from dns_onnx.runtime.library import library_available
from dns_onnx.runtime.session import session

from .javascript import missing_chromium, missing_node, run_chromium, run_node
from .job import Job, Outcome


@dataclass(frozen=True)
class Consumer:
    """One place where models run.

    formats: those it is said to read.  missing: why it cannot be tried here, empty if it can.
    run: Y of each model, or the error it gave.
    """

    formats: tuple[str, ...]
    missing: Callable[[], str]
    run: Callable[[Sequence[Job]], list[Outcome]]


def _one_by_one(run: Callable[[Job], Outcome], jobs: Sequence[Job]) -> list[Outcome]:
    def attempt(job: Job) -> Outcome:
        try:
            return run(job)
        except Exception as error:  # whatever a consumer raises is its answer
            return f"{type(error).__name__}: {error}"

    return [attempt(job) for job in jobs]


def _python(run: Callable[[Job], Outcome]) -> Callable[[Sequence[Job]], list[Outcome]]:
    return partial(_one_by_one, run)


def _package(module: str) -> Callable[[], str]:
    return lambda: "" if find_spec(module) else f"{module} is not installed: the extra `deployment`"


def _stock(job: Job) -> Outcome:
    made = session(job.path, ["CPUExecutionProvider"], native=False)
    return made.run(["Y"], job.inputs)[0]


def _with_kernels(job: Job) -> Outcome:
    made = session(job.path, ["CPUExecutionProvider"], native="require", choose=False)
    return made.run(["Y"], job.inputs)[0]


def _reference(job: Job) -> Outcome:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(job.path)).run(["Y"], job.inputs)[0]


def _openvino(job: Job) -> Outcome:
    import openvino

    # without the hint it computes in bfloat16 where the CPU can
    compiled = openvino.Core().compile_model(
        str(job.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(job.inputs)[0]


def _opencv(job: Job) -> Outcome:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(job.path))
    net.setInput(job.inputs["X"], "X")
    return net.forward()


CONSUMERS: dict[str, Consumer] = {
    "ONNX Runtime": Consumer(("csr", "portable", "coo", "dense"), lambda: "", _python(_stock)),
    "ONNX Runtime with our library": Consumer(
        ("csr", "portable", "coo", "dense"),
        lambda: "" if library_available() else "the native library is not built",
        _python(_with_kernels),
    ),
    "onnx.reference": Consumer(("csr", "portable", "dense"), lambda: "", _python(_reference)),
    "onnxruntime-node": Consumer(
        ("csr", "portable", "coo", "dense"),
        partial(missing_node, "onnxruntime-node"),
        partial(run_node, "onnxruntime-node"),
    ),
    "onnxruntime-web under Node": Consumer(
        ("csr", "portable", "coo", "dense"),
        partial(missing_node, "onnxruntime-web"),
        partial(run_node, "onnxruntime-web"),
    ),
    "onnxruntime-web in Chromium": Consumer(
        ("csr", "portable", "coo", "dense"), missing_chromium, run_chromium
    ),
    "OpenVINO": Consumer(("portable", "dense"), _package("openvino"), _python(_openvino)),
    "OpenCV DNN": Consumer(("portable", "dense"), _package("cv2"), _python(_opencv)),
}
