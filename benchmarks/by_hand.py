"""ResNet-50 and VGG-19 as one would write them by hand in PyTorch, for the timing beside them.

The weights come from an ONNX file of the same net, in the order of its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

# ResNet: (inner channels, blocks, stride of the first) of each stage
STAGES = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]
# VGG: channels of each convolution, 0 = halve the image
PLAN = [64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0]
CLASSES, IMAGE_AREA = 1000, 49


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 takes the stride, as in the file."""

    def __init__(self, given: int, inner: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inner
        self.body = nn.Sequential(
            *normed(given, inner, 1), nn.ReLU(inplace=True),
            *normed(inner, inner, 3, stride), nn.ReLU(inplace=True),
            *normed(inner, wide, 1),
        )  # fmt: skip
        project = given != wide
        self.shortcut = nn.Sequential(*normed(given, wide, 1, stride)) if project else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def normed(given: int, wanted: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the image's size but for its stride, and its norm."""
    conv = nn.Conv2d(given, wanted, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(wanted)]


def resnet50() -> nn.Sequential:
    """ResNet-50 of He et al. (2015), table 1, with a Softmax."""
    layers = [*normed(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    given = 64
    for inner, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(given, inner, 1 if block else stride))
            given = 4 * inner
    head = [nn.AvgPool2d(7), nn.Flatten(), nn.Linear(given, CLASSES), nn.Softmax(1)]
    return nn.Sequential(*layers, *head)


def vgg19() -> nn.Sequential:
    """VGG-19 of Simonyan and Zisserman (2014), table 1, with a Softmax."""
    layers: list[nn.Module] = []
    given = 3
    for wanted in PLAN:
        if not wanted:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(given, wanted, 3, padding=1), nn.ReLU(inplace=True)]
        given = wanted
    layers.append(nn.Flatten())
    for size, wanted in ((IMAGE_AREA * given, 4096), (4096, 4096)):
        layers += [nn.Linear(size, wanted), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(4096, CLASSES), nn.Softmax(1))


NETS = {"resnet50": resnet50, "vgg19": vgg19}


def before_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its last node: its scores tell nets apart that Softmax makes equal."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    cut.graph.output[0].name = cut.graph.node[-1].input[0]
    cut.graph.output[0].type.tensor_type.ClearField("shape")
    del cut.graph.node[-1]
    return cut


def with_weights_of(net: nn.Sequential, model: onnx.ModelProto) -> nn.Sequential:
    """The net with the weights of the same net in ONNX.

    Both name each layer's weights in the same order (kernel, bias; scale, bias, mean, variance);
    layers are matched by kind and shape, in the order of the nodes.
    Raises ValueError if a layer finds no node.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    kinds = {"Conv": nn.Conv2d, "BatchNormalization": nn.BatchNorm2d, "Gemm": nn.Linear}
    waiting = [
        (kinds[n.op_type], [numpy_helper.to_array(tensors[i]) for i in n.input[1:] if i in tensors])
        for n in model.graph.node
        if n.op_type in kinds
    ]
    for layer in net.modules():
        if isinstance(layer, tuple(kinds.values())):
            held = _held(layer)
            shapes = [tuple(t.shape) for t in held]
            match = next(
                (row for row in waiting
                 if isinstance(layer, row[0]) and [a.shape for a in row[1]] == shapes),
                None,
            )  # fmt: skip
            if match is None:
                raise ValueError(f"{layer}: expected a node with weights {shapes}, got none")
            waiting.remove(match)
            with torch.no_grad():
                for tensor, array in zip(held, match[1], strict=True):
                    tensor.copy_(torch.from_numpy(array.copy()))
    return net


def _held(layer: nn.Module) -> Sequence[Tensor]:
    named = [layer.weight, layer.bias]
    if isinstance(layer, nn.BatchNorm2d):
        named += [layer.running_mean, layer.running_var]
    return [t for t in named if isinstance(t, Tensor)]
