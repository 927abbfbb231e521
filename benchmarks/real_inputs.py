"""Rows for the real models: CIFAR-10 with labels, inputs of their kind without.

    python benchmarks/real_inputs.py silero_vad --data DIR --out FOLDER

writes train.npz and eval.npz into FOLDER.  DIR holds models/ and data/ (DNS_ONNX_DATA).  Images
come from data/imagenet_sample (needs Pillow), files from this machine, speech from espeak-ng (a
Debian package) in many voices, with pauses and noise.  Training and evaluation share no image,
file, voice or sentence.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
import types
import wave
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import typer
from numpy.typing import NDArray
from scipy.signal import resample_poly, stft

Array = NDArray[Any]
Arrays = dict[str, Array]
SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Rows to train on and rows to judge by.

    options: what a DATA argument says after its `?`.  held: so many of the last training rows are
    whole recordings, which may be held out together; 0 where rows come from none.
    """

    train: Arrays
    eval: Arrays
    options: str = ""
    held: int = 0


def parted(made: Inputs) -> tuple[Arrays, Arrays]:
    """(teaching rows, held-out rows) of the training rows, no recording in both."""
    count = max(map(len, map(np.atleast_1d, made.train.values())))
    rows = {n: a for n, a in made.train.items() if np.ndim(a) and len(a) == count}
    return tuple(
        {**made.train, **{n: a[part] for n, a in rows.items()}}
        for part in (slice(None, -made.held), slice(-made.held, None))
    )  # type: ignore[return-value]


# ------------------------------------------------------------------ images


def cifar(std: str) -> Callable[[Path], Inputs]:
    """Maker of CIFAR-10's rows and labels, for nets that were trained with these deviations."""

    def made(root: Path) -> Inputs:
        parts = [np.load(root / "data" / "cifar10" / f"{p}.npz") for p in ("train", "test")]
        rows = [{"input": p["images"], "labels": p["labels"]} for p in parts]
        mean = "0.4914,0.4822,0.4465"
        return Inputs(*rows, f"layout=nhwc&scale={1 / 255}&mean={mean}&std={std}")

    return made


def squeezenet(root: Path) -> Inputs:
    """The sample's images as Caffe's nets want them; the class ids, for the evaluation only.

    Every other class trains, so that no class is in both.
    """
    files = _images(root)
    images = np.stack([_image(f, (256, 256))[16:240, 16:240, ::-1] for f in files])
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    labels = np.array([int(f.name.split("_")[0]) for f in files])
    return Inputs(
        {"data_0": rows[0::2], "labels": labels[0::2]},
        {"data_0": rows[1::2], "labels": labels[1::2]},
        "mean=104,117,123",
    )  # fmt: skip


def ultraface(root: Path) -> Inputs:
    """The sample's images at 320x240, (x - 127) / 128."""
    rows = np.stack([_image(f, (320, 240)) for f in _images(root)]).transpose(0, 3, 1, 2)
    rows = np.ascontiguousarray(rows)
    return Inputs({"input": rows[0::2]}, {"input": rows[1::2]}, "mean=127&std=128")


def _images(root: Path) -> list[Path]:
    return sorted((root / "data" / "imagenet_sample").glob("*.jpg"))


def _image(path: Path, size: tuple[int, int]) -> Array:
    """An image as RGB bytes [H, W, 3].  size: (width, height)."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


# ------------------------------------------------------------------ files


def magika(root: Path, most: int = 4000, each: int = 120) -> Inputs:
    """Files of this machine, at most `each` of a suffix, as 512 bytes of start, middle and end."""
    found: dict[str, list[Path]] = {}
    for place in (Path(sys.prefix), Path(sys.base_prefix), Path("/usr/share"), Path("/usr/lib")):
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                kind = path.suffix.lower()
                if len(found.setdefault(kind, [])) < each and path.is_file():
                    found[kind].append(path)
    files = sorted({f for kind in found.values() for f in kind})
    rng = np.random.default_rng(SEED)
    chosen = [files[i] for i in rng.permutation(len(files))[:most]]
    rows = {f: _file_features(f) for f in chosen if os.access(f, os.R_OK)}
    parts: dict[bool, list[Array]] = {True: [], False: []}
    for path, row in rows.items():
        if row is not None:
            parts[zlib.crc32(os.fsencode(path)) % 5 == 0].append(row)
    return Inputs({"bytes": np.stack(parts[False])}, {"bytes": np.stack(parts[True])})


def _file_features(path: Path, size: int = 512, padding: int = 256) -> Array | None:
    """The three parts that magika looks at; None for files that it does not (below 16 bytes)."""
    content = path.read_bytes()
    if len(content) < 16:
        return None
    data = np.frombuffer(content, np.uint8).astype(np.float32)
    start, end = content.lstrip(), content.rstrip()
    first = np.frombuffer(start[:size], np.uint8)
    last = np.frombuffer(end[-size:], np.uint8)
    middle = data[max(0, (len(data) - size) // 2) :][:size]
    row = np.full(3 * size, padding, np.float32)
    row[: len(first)] = first
    left = size + (size - len(middle)) // 2
    row[left : left + len(middle)] = middle
    row[3 * size - len(last) :] = last
    return row


# ------------------------------------------------------------------ speech


RATE = 16_000
VOICES = ("en-us", "en-gb", "de", "fr-fr", "es", "it", "pl", "ru", "cmn", "hi", "pt", "sv")
VARIANTS = ("", "+f2", "+f4", "+m3", "+m7", "+croak", "+whisper")


def speech(clips: int, held: int, seconds: int = 8) -> tuple[list[Array], list[Array]]:
    """(training clips, held-out clips) of float32 samples at 16 kHz, from -1 to 1."""
    rng = np.random.default_rng(SEED)
    voices = [v + w for v in VOICES for w in VARIANTS]
    order = rng.permutation(len(voices))
    lines = _sentences()
    lines = [lines[i] for i in rng.permutation(len(lines))]
    speakers = [voices[i] for i in order]
    train = [_clip(lines[::2], speakers[::2], i, seconds, rng) for i in range(clips)]
    return train, [_clip(lines[1::2], speakers[1::2], i, seconds, rng) for i in range(held)]


def _sentences() -> list[str]:
    """Plain sentences from the documentation of Python's own modules."""
    modules = [m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType)]
    texts = [inspect.getdoc(o) or "" for m in modules for o in list(vars(m).values())
             if inspect.isfunction(o)]  # fmt: skip
    found = re.findall(r"[A-Z][a-z]+(?: [a-z']+,?){5,16}\.", " ".join(texts))
    return sorted(set(found))


def _clip(
    lines: list[str], voices: list[str], index: int, seconds: int, rng: np.random.Generator
) -> Array:
    """Sentences and pauses, in one voice, with noise."""
    samples = np.zeros(seconds * RATE, np.float32)
    at = int(rng.integers(0, RATE))
    voice = voices[index % len(voices)]
    speed, pitch = int(rng.integers(120, 220)), int(rng.integers(20, 80))
    while at < len(samples) - RATE // 2:
        spoken = _spoken(lines[int(rng.integers(len(lines)))], voice, speed, pitch)
        piece = spoken[: len(samples) - at]
        samples[at : at + len(piece)] += piece
        at += len(piece) + int(rng.uniform(0.2, 1.5) * RATE)
    samples *= rng.uniform(0.05, 0.7) / max(float(np.abs(samples).max()), 1e-3)
    white = rng.standard_normal(len(samples) // 2 + 1) + 1j * rng.standard_normal(
        len(samples) // 2 + 1
    )
    colour = np.arange(1, len(white) + 1) ** -rng.uniform(0.0, 1.0)
    noise = np.fft.irfft(white * colour, len(samples))
    loud = float(np.sqrt((samples**2).mean()))
    noise *= loud * 10 ** (-rng.uniform(0, 30) / 20) / float(np.sqrt((noise**2).mean()))
    return np.clip(samples + noise, -1, 1).astype(np.float32)


def _spoken(text: str, voice: str, speed: int, pitch: int) -> Array:
    """A sentence as espeak-ng speaks it, at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path)]
        try:
            subprocess.run([*command, text], check=True, capture_output=True)
        except FileNotFoundError:
            sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
        with wave.open(str(path)) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return resample_poly(samples.astype(np.float32) / 32768, RATE, rate).astype(np.float32)


def silero_vad(root: Path) -> Inputs:
    """Windows of 512 samples after 64 of the window before, with the states that they meet."""
    session = ort.InferenceSession(root / "models" / "silero_vad.onnx")

    def steps(clip: Array) -> Iterator[Arrays]:
        state = np.zeros((2, 1, 128), np.float32)
        padded = np.concatenate([np.zeros(64, np.float32), clip])
        for at in range(0, len(clip) - 511, 512):
            row = {"input": padded[at : at + 576], "state": state[:, 0]}
            yield row
            feeds = {"input": row["input"][None], "state": state, "sr": np.array(RATE)}
            _, state = session.run(None, feeds)

    return _recorded(speech(24, 12), steps, {"sr": np.array(RATE)})


def gtcrn(root: Path, every: int = 7) -> Inputs:
    """Spectra of 32 ms (hop 16 ms), one in `every`, with the caches that they meet."""
    session = ort.InferenceSession(root / "models" / "gtcrn_simple.onnx")
    caches = {i.name: i.shape for i in session.get_inputs() if i.name != "mix"}

    def steps(clip: Array) -> Iterator[Arrays]:
        window = np.sqrt(np.hanning(513)[:512])
        _, _, spectra = stft(clip, window=window, nperseg=512, noverlap=256, scaling="psd")
        spectra = spectra * np.sqrt(RATE * (window**2).sum())  # undo scipy's scaling
        state = {name: np.zeros(shape, np.float32) for name, shape in caches.items()}
        for k in range(spectra.shape[1]):
            frame = np.stack([spectra[:, k].real, spectra[:, k].imag], -1)[:, None]
            row = {"mix": frame.astype(np.float32), **state}
            if k % every == 0:
                yield row
            _, *after = session.run(None, {**row, "mix": row["mix"][None]})
            state = dict(zip(caches, after, strict=True))

    return _recorded(speech(20, 6), steps, {})


def _recorded(
    clips: tuple[list[Array], list[Array]], steps: Callable[[Array], Iterator[Arrays]],
    whole: Arrays,
) -> Inputs:  # fmt: skip
    """The steps of clips, in order, the last fifth of the training clips to be held out."""
    train, held = ([list(steps(clip)) for clip in part] for part in clips)
    last = sum(map(len, train[-(len(train) // 5) :]))
    return Inputs(
        *({**_rows([s for clip in part for s in clip]), **whole} for part in (train, held)),
        held=last,
    )


def _rows(steps: list[Arrays]) -> Arrays:
    return {name: np.stack([s[name] for s in steps]) for name in steps[0]}


MAKERS: dict[str, Callable[[Path], Inputs]] = {
    "vnn22_sri_resnet_a": cifar("0.2470,0.2435,0.2616"),
    "vnn23_vit_cifar10_pgd_2_3_16": cifar("0.2023,0.1994,0.2010"),
    "squeezenet_fp32_from_fp16": squeezenet,
    "magika_v1": magika,
    "ultraface_rfb_320": ultraface,
    "silero_vad": silero_vad,
    "gtcrn_simple": gtcrn,
}


def main(
    model: Annotated[str, typer.Argument(help=f"one of {', '.join(MAKERS)}")],
    data: Annotated[Path, typer.Option(envvar="DNS_ONNX_DATA", help="has models/ and data/")],
    out: Annotated[Path, typer.Option(help="folder for train.npz and eval.npz")],
) -> None:
    """Make the inputs of a model and write them."""
    made = MAKERS[model](data)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "train.npz", **made.train)
    np.savez(out / "eval.npz", **made.eval)
    for name, arrays in (("train", made.train), ("eval", made.eval)):
        shapes = ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in arrays.items())
        typer.echo(f"{out / name}.npz{'?' + made.options if made.options else ''}: {shapes}")


if __name__ == "__main__":
    typer.run(main)
