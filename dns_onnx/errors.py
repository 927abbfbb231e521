"""The errors that dns-onnx raises.  Every message reads `where: expected, got; remedy`."""

from __future__ import annotations

from collections.abc import Sequence


class DnsOnnxError(Exception):
    """Base of every error that a user of dns-onnx can cause and mend."""


class ModelError(DnsOnnxError):
    """The ONNX file is broken, incomplete, or reaches outside its folder."""


class UnsupportedOperatorError(ModelError):
    """The model holds operators that no implementation exists for.

    nodes: one line for each such node, all of them, in graph order.
    """

    def __init__(self, where: str, nodes: Sequence[str]) -> None:
        self.nodes = list(nodes)
        listed = "\n".join(f"  {node}" for node in self.nodes)
        super().__init__(
            f"{where}: {len(self.nodes)} node(s) have no implementation:\n{listed}\n"
            "Register one with dns_onnx.converters.registry.op, or replace the nodes in the model."
        )


class DataError(DnsOnnxError):
    """Training or evaluation data are missing, malformed, or do not fit the model."""


class ConfigError(DnsOnnxError):
    """A configuration file, recipe or option has a wrong key or value."""


class ExportError(DnsOnnxError):
    """The compressed model could not be written; the file that was there before is untouched."""


class CheckpointError(DnsOnnxError):
    """A checkpoint is unreadable or belongs to another model, data set or configuration."""


class TrainingError(DnsOnnxError):
    """Training cannot go on (a loss that is NaN or infinite, no gradient, no prunable layer)."""


class BudgetMissed(TrainingError):
    """No model that a search tried was within its budget."""


class Diverged(TrainingError):
    """The loss, or a weight, is no longer finite."""


class Interrupted(DnsOnnxError):
    """The user stopped the run; the checkpoint to resume from is named in the message."""


class NotMain(DnsOnnxError):
    """This process has done its part; the first one of its group writes and returns the result."""


class NativeLibraryError(DnsOnnxError):
    """The native sparse kernels were asked for and cannot be used here."""
