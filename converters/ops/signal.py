"""Fourier transforms, windows and mel filters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.ops.widths import scalar
from dns_onnx.converters.registry import op


@op("DFT", 17, 20, static=("dft_length", "axis"))
def dft(
    x: Tensor,
    dft_length: Any = None,
    axis: Any = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
    version_: int = 20,
) -> Tensor:
    """Discrete Fourier transform along an axis.

    x: [..., 1] real or [..., 2] complex.  Returns [..., 2] (a real signal from a one-sided
    inverse: [..., 1]).  Source: ONNX operators, DFT 17-20.
    """
    along = (1 if version_ == 17 else -2) if axis is None else int(scalar(axis))
    along = along % x.dim() if along >= 0 else along + x.dim()
    length = None if dft_length is None else int(scalar(dft_length))
    work = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    wave = torch.view_as_complex(work.contiguous()) if x.shape[-1] == 2 else work[..., 0]
    if inverse and onesided:
        result = torch.fft.irfft(wave, length, along).unsqueeze(-1)
        real: Tensor = result.to(x.dtype)
        return real
    if inverse:
        found = torch.fft.ifft(wave, length, along)
    elif onesided and not wave.is_complex():
        found = torch.fft.rfft(wave, length, along)
    else:
        found = torch.fft.fft(wave, length, along)
        if onesided:
            found = found.narrow(along, 0, found.shape[along] // 2 + 1)
    return torch.view_as_real(found).to(x.dtype)


@op("STFT", 17, static=("frame_step", "frame_length"))
def stft(
    x: Tensor,
    frame_step: Any,
    window: Tensor | None = None,
    frame_length: Any = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Fourier transforms of windows that step along a signal.

    x: [B, T, 1] or [B, T, 2] (complex).  Returns [B, frames, bins, 2].
    Source: ONNX operators, STFT 17.
    """
    step = int(scalar(frame_step))
    if frame_length is not None:
        length = int(scalar(frame_length))
    else:
        length = x.shape[1] if window is None else window.shape[0]
    wave = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.reshape(x.shape[:2])
    frames = wave.unfold(1, length, step)
    if window is not None:
        frames = frames * window
    complete = not onesided or frames.is_complex()
    found = torch.fft.fft(frames) if complete else torch.fft.rfft(frames)
    if onesided and complete:
        found = found[..., : length // 2 + 1]
    return torch.view_as_real(found)


def _cosine_window(
    size: Any, periodic: int, output_datatype: int, terms: tuple[float, ...]
) -> Tensor:
    """A sum of cosines over one period: terms[0] - terms[1] cos + terms[2] cos 2 - ..."""
    count = int(scalar(size))
    period = count if periodic else max(count - 1, 1)
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / period)
    total = torch.zeros(count, dtype=torch.float64)
    for order, weight in enumerate(terms):
        total = total + (-1) ** order * weight * torch.cos(order * angle)
    return total.to(torch_dtype(output_datatype))


@op("HannWindow", 17, static=("size",), differentiable=False)
def hann_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """1/2 - 1/2 cos.  Source: ONNX operators, HannWindow 17."""
    return _cosine_window(size, periodic, output_datatype, (0.5, 0.5))


@op("HammingWindow", 17, static=("size",), differentiable=False)
def hamming_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """25/46 - 21/46 cos.  Source: ONNX operators, HammingWindow 17."""
    return _cosine_window(size, periodic, output_datatype, (25 / 46, 21 / 46))


@op("BlackmanWindow", 17, static=("size",), differentiable=False)
def blackman_window(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """0.42 - 0.5 cos + 0.08 cos 2.  Source: ONNX operators, BlackmanWindow 17."""
    return _cosine_window(size, periodic, output_datatype, (0.42, 0.5, 0.08))


@op(
    "MelWeightMatrix",
    17,
    static=("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"),
    differentiable=False,
)
def mel_weight_matrix(
    num_mel_bins: Any,
    dft_length: Any,
    sample_rate: Any,
    lower_edge_hertz: Any,
    upper_edge_hertz: Any,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """Triangular filters evenly spaced on the mel scale.

    Returns [dft_length / 2 + 1, num_mel_bins].  Source: ONNX operators, MelWeightMatrix 17.
    """
    bins, length, rate, low, high = (
        scalar(v)
        for v in (num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)
    )

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    step = (mel(high) - mel(low)) / (bins + 2)
    edges = [700 * (10 ** ((mel(low) + i * step) / 2595) - 1) for i in range(bins + 2)]
    places = [int((length + 1) * hertz // rate) for hertz in edges]
    matrix = torch.zeros(length // 2 + 1, bins, dtype=torch.float64)
    for i in range(bins):
        left, centre, right = places[i : i + 3]
        if centre == left:
            matrix[centre, i] = 1
        for j in range(left, centre + 1) if centre > left else ():
            matrix[j, i] = (j - left) / (centre - left)
        for j in range(centre, right) if right > centre else ():
            matrix[j, i] = (right - j) / (right - centre)
    return matrix.to(torch_dtype(output_datatype))
