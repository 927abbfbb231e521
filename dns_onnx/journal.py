"""What a run tells while it goes: a JSON-lines log, one line a look, and TensorBoard events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dns_onnx import distributed
from dns_onnx.errors import CheckpointError, ConfigError
from dns_onnx.masks import is_divided, local, whole
from dns_onnx.surgery import Surgery

LOG = "log.jsonl"
HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Change:
    """One layer at a look, weights and biases together.

    kept: entries kept now.  cut, spliced: those that went, and that came back, since the look
    before.  returned: entries kept now that were cut at an earlier look.
    """

    kept: int
    cut: int
    spliced: int
    returned: int


@dataclass(frozen=True)
class Progress:
    """One look at a run.  loss: mean since the look before.

    metric: the name of what held-out rows are judged by; value: it, where it was read.
    layers: by the initializer name of the weight.
    """

    iteration: int
    iterations: int
    loss: float
    rate: float
    kept: int
    size: int
    seconds: float
    metric: str
    value: float | None
    layers: dict[str, Change]


@dataclass(frozen=True)
class Note:
    """Something that the user should know while a run goes on."""

    said: str


Observer = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """An observer that looks away."""


class Patience:
    """Says what is being done where that takes long: no more than a note in `seconds`.

    tell: called with the notes.
    """

    def __init__(self, tell: Callable[[Note], None], seconds: float = 10.0) -> None:
        self.tell, self.seconds, self.last = tell, seconds, time.monotonic()

    def __call__(self, doing: str) -> None:
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            self.tell(Note(f"{doing} ..."))


class Journal:
    """The log of one run, and what has to be remembered from one look to the next.

    Nothing waits for the device between two looks, and each look waits once.
    folder: where the log goes.  tensorboard: where the events go, if anywhere.
    Raises ConfigError where events are wanted and cannot be written.
    """

    def __init__(
        self, surgery: Surgery, folder: Path, device: torch.device, tensorboard: Path | None = None
    ) -> None:
        self.surgery, self.folder, self.tensorboard = surgery, folder, tensorboard
        if tensorboard is not None:
            event_writer()
        masks = _masks(surgery)
        self.before = {name: mask.clone() for name, mask in masks.items()}  # at the last look
        self.once_cut = {name: ~mask for name, mask in masks.items()}  # at any look
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # since the last look
        self.looked_at = 0
        self.log_bytes = 0
        self._log: IO[str] | None = None
        self._events: Any = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """The log, cut back to what the checkpoint knows of; events after that are withdrawn."""
        if not distributed.is_main():
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LOG
        path.touch()
        with path.open("r+", encoding="utf-8") as self._log:
            self._log.truncate(self.log_bytes)
            self._log.seek(self.log_bytes)
            if self.tensorboard is not None:
                self._events = event_writer()(self.tensorboard, purge_step=self.looked_at + 1)
            try:
                yield
            finally:
                if self._events is not None:
                    self._events.close()
                self._log = self._events = None

    def add(self, loss: Tensor) -> None:
        """Take note of an iteration's loss, a scalar on the device."""
        self.loss_sum += loss.detach()

    @torch.no_grad()
    def look(self, iteration: int) -> tuple[float, dict[str, Change]]:
        """(mean loss, what happened to each layer) since the look before."""
        counts = [distributed.mean(self.loss_sum)]
        for layer in self.surgery:
            sums = [
                distributed.total(self._changes(t.name, local(t.mask)), t.mask)
                for t in layer.tensors
                if t.mask is not None
            ]  # one a tensor: [kept, cut, spliced, returned]
            counts.append(torch.stack(sums).sum(0))
        loss, *flat = torch.cat([c.double().view(-1) for c in counts]).tolist()
        layers = {
            layer.key: Change(*map(int, flat[4 * i : 4 * i + 4]))
            for i, layer in enumerate(self.surgery)
        }
        mean = loss / max(iteration - self.looked_at, 1)
        self.loss_sum.zero_()
        self.looked_at = iteration
        return mean, layers

    def _changes(self, name: str, mask: Tensor) -> Tensor:
        before, once_cut = map(local, (self.before[name], self.once_cut[name]))
        changed = before ^ mask
        spliced = (changed & mask).sum()
        found = torch.stack([mask.sum(), changed.sum() - spliced, spliced, (mask & once_cut).sum()])
        before.copy_(mask)
        once_cut |= ~mask
        return found

    def write(self, progress: Progress) -> None:
        """Append a look to the log, and to the events; of many processes, the first one does."""
        if not distributed.is_main():
            return
        if self._log is None:
            raise RuntimeError("the journal is not open")
        self._log.write(json.dumps(asdict(progress)) + "\n")
        self._log.flush()
        self.log_bytes = self._log.tell()
        if self._events is not None:
            self._write_events(progress)

    def _write_events(self, p: Progress) -> None:
        scalars = {"loss": p.loss, "rate": p.rate, "kept": p.kept / p.size}
        if p.value is not None:
            scalars[p.metric] = p.value
        for layer in self.surgery:
            change = p.layers[layer.key]
            scalars[f"kept/{layer.key}"] = change.kept / layer.size()
            for name in ("cut", "spliced", "returned"):
                scalars[f"{name}/{layer.key}"] = getattr(change, name)
        for name, value in scalars.items():
            self._events.add_scalar(name, value, p.iteration)
        if p.value is not None or p.iteration == p.iterations:  # seldom: they read every weight
            for tensor in (t for layer in self.surgery for t in layer.tensors):
                kept = tensor.weight.detach()
                if is_divided(kept):
                    continue  # this process alone cannot bring it together
                kept = kept if tensor.mask is None else kept[tensor.mask]
                if kept.numel():
                    self._events.add_histogram(
                        f"weights/{tensor.name}", kept.float(), p.iteration, bins=HISTOGRAM_BINS
                    )
        self._events.flush()  # on the disk before a checkpoint says so

    # ------------------------------------------------------------------ checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, masks as bits."""
        found = {"loss_sum": self.loss_sum}
        found |= {f"seen.{name}": packed(mask) for name, mask in self.before.items()}
        return found | {f"once_cut.{name}": packed(mask) for name, mask in self.once_cut.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides, as JSON values."""
        return {"log_bytes": self.log_bytes, "looked_at": self.looked_at}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.log_bytes, self.looked_at = state["log_bytes"], state["looked_at"]
        self.loss_sum.copy_(tensors["loss_sum"])
        for name, mask in self.before.items():
            mask.copy_(distributed.like(unpacked(tensors[f"seen.{name}"], mask), mask))
        for name, mask in self.once_cut.items():
            mask.copy_(distributed.like(unpacked(tensors[f"once_cut.{name}"], mask), mask))


def read_log(folder: Path) -> list[Progress]:
    """The looks that a run has logged; none where it has no log.

    Raises CheckpointError where the log is not one of ours.
    """
    path = folder / LOG
    if not path.exists():
        return []
    try:
        looks = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [
            Progress(**{**look, "layers": {k: Change(**v) for k, v in look["layers"].items()}})
            for look in looks
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected a log of this version, got {error}; start anew in another --run-dir"
        ) from None


def packed(mask: Tensor) -> Tensor:
    """A bool tensor as bits: uint8 [ceil(n / 8)], on the CPU."""
    return torch.from_numpy(np.packbits(whole(mask).cpu().numpy()))


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The bool tensor that `packed` made bits of, in the shape of `like`, on the CPU."""
    flat = np.unpackbits(bits.numpy(), count=like.numel()).astype(np.bool_)
    return torch.from_numpy(flat).view(like.shape)


def event_writer() -> Any:
    """TensorBoard's writer class.

    Raises ConfigError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(f"--tensorboard: {error}; pip install 'dns-onnx[tensorboard]'") from None
    return SummaryWriter


def _masks(surgery: Surgery) -> dict[str, Tensor]:
    """The masks under surgery, by initializer name."""
    return {t.name: t.mask for layer in surgery for t in layer.tensors if t.mask is not None}
