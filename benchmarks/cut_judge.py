"""How often cuts that hold on held-out rows do not hold on others, by who judges them.

    python benchmarks/cut_judge.py --data DIR --work DIR --out docs/results/cut_judge.md

DIR of --data holds models/ and data/ (DNS_ONNX_DATA).  The ViT of CIFAR-10 is cut and fitted along
a path of compressions, three seeds.  Which of its 8,000 training rows it answers right decides what
a search would take, for many random draws of held-out, teaching and unseen rows.  Test rows are not
read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import real_networks
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from dns_onnx import report, sources
from dns_onnx.attach import to_device
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.cuts import Cutter
from dns_onnx.data import Dataset, batches
from dns_onnx.prepare import prepare_run
from dns_onnx.rows import input_specs, load_rows
from dns_onnx.snapshot import taken
from dns_onnx.targets import goals
from dns_onnx.train import Run

NET, SEEDS = "vnn23_vit_cifar10_pgd_2_3_16", (0, 1, 2)
PATH = [1.15 * 1.06**k for k in range(23)]  # compressions
STEP = 4  # of them, that the first cut takes; halved where one does not hold
DROP, TEACHING, DRAWS = 0.5, 4000, 500  # points; rows; of each seed

Answers = NDArray[np.bool_]  # [original and each cut, rows]: which are right
Holds = Callable[[int], bool]
console = Console(soft_wrap=True, highlight=False)


def main(
    data: Annotated[Path, typer.Option(envvar="DNS_ONNX_DATA", help="has models/ and data/")],
    work: Annotated[Path, typer.Option(help="inputs and answers, to go on from")],
    out: Annotated[Path | None, typer.Option(help="write the table there")] = None,
) -> None:
    """Cut along the path once a seed, and print what each judge comes to."""
    torch.set_num_threads(1)
    found = []
    for seed in SEEDS:
        path = work / f"answers-{seed}.npy"
        if not path.exists():
            work.mkdir(parents=True, exist_ok=True)
            np.save(path, answers(seed, data, work))
        found.append(np.load(path))
    text = report.markdown(table(found))
    console.print(text, markup=False)
    if out is not None:
        where = ", ".join(f"{k} {v}" for k, v in {**report.machine(), "threads": "1"}.items())
        out.write_text(f"{text}\n\nMeasured with: {where}; seeds 0, 1, 2.\n", "utf-8")


def answers(seed: int, data: Path, work: Path) -> Answers:
    """What the original and each cut of the path answer right."""
    train, _, _ = real_networks.rows_of(NET, data, work / "inputs" / NET, whole=False)
    config = real_networks.settings(real_networks.NETS[NET], seed, True, 0.0)
    config = config.model_copy(
        update={"preprocess": sources.preprocess_of(train, config.preprocess)}
    )
    model = read_model(data / "models" / f"{NET}.onnx")
    given = load_rows(train, None, None, config, input_specs(model, {}))
    teaching, heldout = given.teaching, given.heldout
    run = prepare_run(
        model, import_model(model), config, torch.device("cpu"), teaching, work / "run", {}
    ).run
    cutter = Cutter(run, teaching, lambda d: goals(list(run.surgery), {}, d), taken(run))
    rows = (heldout, teaching)
    found = [np.concatenate([right(run, part) for part in rows])]
    for ratio in PATH:
        cutter.cut(ratio)
        cutter.fit()
        found.append(np.concatenate([right(run, part) for part in rows]))
        console.print(f"seed {seed}, {ratio:.2f}x: {100 * found[-1].mean():.2f} %", markup=False)
    return np.stack(found)


@torch.no_grad()
def right(run: Run, data: Dataset) -> NDArray[np.bool_]:
    """Which rows the model answers right."""
    run.model.eval()
    found = []
    for batch in batches(data, 256):
        inputs, _ = to_device(batch, run.device)
        found.append(run.model(*inputs)[0].argmax(1).numpy() == batch.labels)
    run.model.train()
    return np.concatenate(found)


def furthest(holds: Holds) -> int:
    """How many cuts of the path a search goes: further by steps that are halved where one fails."""
    at, step = 0, STEP
    while step:
        ahead = min(at + step, len(PATH))
        if ahead > at and holds(ahead):
            at = ahead
        else:
            step //= 2
    return at


def drop(right: Answers, cut: int, rows: NDArray[Any]) -> float:
    """What is lost on these rows, in points."""
    return 100 * float(right[0, rows].mean() - right[cut, rows].mean())


def noise(right: Answers, cut: int, rows: NDArray[Any]) -> float:
    """The standard error of the drop, of answers that changed, in points."""
    changed = right[0, rows].astype(int) - right[cut, rows]
    return 100 * float(changed.std()) / len(rows) ** 0.5


def judges(right: Answers, heldout: NDArray[Any], teaching: NDArray[Any]) -> dict[str, Holds]:
    """Whether a cut holds, by each judge."""
    both = np.concatenate([heldout, teaching])

    def holds(cut: int, rows: NDArray[Any] = heldout, errors: float = 0.0) -> bool:
        return drop(right, cut, rows) + errors * noise(right, cut, rows) <= DROP

    return {
        "held-out rows": holds,
        "held-out rows, half a standard error off": lambda cut: holds(cut, errors=0.5),
        "held-out rows, a standard error off": lambda cut: holds(cut, errors=1.0),
        "held-out rows, and both together": lambda cut: holds(cut) and holds(cut, both),
        "all rows there are": lambda cut: holds(cut, np.arange(right.shape[1])),
    }


def table(found: list[Answers]) -> report.Table:
    """A line for each number of held-out rows and each judge."""
    lines = []
    rng = np.random.default_rng(0)
    for count in (2000, 800):
        ends: dict[str, list[list[float]]] = {}
        for right in found:
            for _ in range(DRAWS):
                rows = rng.permutation(right.shape[1])
                heldout, teaching, unseen = np.split(rows, [count, count + TEACHING])
                for name, holds in judges(right, heldout, teaching).items():
                    cut = furthest(holds)
                    ratio = PATH[cut - 1] if cut else 1.0
                    lost = [drop(right, cut, part) for part in (unseen, rows)]
                    ends.setdefault(name, []).append([100 * (1 - 1 / ratio), *lost])
        for name, values in ends.items():
            zeros, lost, true = np.array(values).T
            lines.append([
                f"{count}", name, f"{zeros.mean():.1f} %", f"{lost.mean():+.2f}",
                f"{100 * (lost > 2 * DROP).mean():.0f} %", f"{100 * (true > DROP).mean():.0f} %",
                f"{100 * (true > 1.5 * DROP).mean():.0f} %",
            ])  # fmt: skip
    header = ["held-out rows", "judged by", "zeros", "drop on unseen rows", "above 1 there",
              "above 0.5 on all 8,000", "above 0.75 on them"]  # fmt: skip
    return header, lines


if __name__ == "__main__":
    typer.run(main)
