"""`dns-onnx`: the verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys

import typer

from dns_onnx.cli import bench, check, compress, convert, demo, inspect
from dns_onnx.cli.console import errors
from dns_onnx.errors import BudgetMissed, DnsOnnxError, Interrupted, NotMain

MISSED, WRONG, STOPPED = 1, 2, 130
DEBUG = "DNS_ONNX_DEBUG"

app = typer.Typer(
    name="dns-onnx",
    help="Prune any ONNX model by Dynamic Network Surgery; get back a small ONNX model.",
    epilog=(
        "Exit codes: 0 success, 1 the result misses what was asked, 2 wrong usage or bad input, "
        "130 stopped: go on with --resume."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (inspect, compress, check, convert, bench, demo):
    app.command(verb.NAME, epilog=verb.EXAMPLE)(verb.command)


def main() -> None:
    """Run a verb.  A mistake of the user's is one clear message and exit 2, never a traceback."""
    try:
        app()
    except Interrupted as stopped:
        errors.print(f"dns-onnx: {stopped}", style="yellow", markup=False)
        sys.exit(STOPPED)
    except NotMain:
        sys.exit(0)
    except KeyboardInterrupt:
        errors.print("dns-onnx: stopped", style="yellow")
        sys.exit(STOPPED)
    except (DnsOnnxError, OSError) as error:
        errors.print(f"dns-onnx: {error}", style="red", markup=False)
        sys.exit(MISSED if isinstance(error, BudgetMissed) else WRONG)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        errors.print(
            f"dns-onnx: unexpected {type(error).__name__}: {error}; this may be a bug of ours: "
            f"run again with {DEBUG}=1 to see where",
            style="red", markup=False,
        )  # fmt: skip
        sys.exit(WRONG)
