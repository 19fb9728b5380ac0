"""ResNet-20 (He, Zhang, Ren, Sun 2015, arXiv 1512.03385, Section 4.2) as a feature map and linear outer weights.

The network is the two-layer model of the paper with M = 64 learned features: f(x) = phi(x) u / M, where phi(x) (64,) is
the averaged last stage of the ResNet and u (64, k) the outer weights (paper, Section 6.2). Initialisation is the
framework's default everywhere, u included.
"""

import torch
from torch import nn

WIDTH = 64  # M: channels of the last stage
_STAGES = (16, 32, WIDTH)
_BLOCKS = 3  # a stage


class Features(nn.Module):
    """phi: images (N, 3, H, W) to features (N, 64); the images of CIFAR-10 have H = W = 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv3x3(3, _STAGES[0])
        self.bn = nn.BatchNorm2d(_STAGES[0])
        self.relu = nn.ReLU(inplace=True)
        before = (_STAGES[0], *_STAGES[:-1])
        self.stages = nn.Sequential(*(_stage(*channels) for channels in zip(before, _STAGES, strict=True)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """phi(images): (N, 64), the mean of the last maps over height and width."""
        maps = self.stages(self.relu(self.bn(self.conv(images))))
        return maps.mean(dim=(2, 3))


class ResNet20(nn.Module):
    """f = phi u / M: images (N, 3, 32, 32) to outputs (N, k), k = ``classes``."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = Features()
        self.readout = nn.Linear(WIDTH, classes, bias=False)

    @property
    def outer(self) -> torch.Tensor:
        """u (64, k): a view of the read-out's weight (k, 64), through which gradients flow."""
        return self.readout.weight.T

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """f(images): (N, k)."""
        return self.readout(self.features(images)) / WIDTH


def _stage(before: int, channels: int) -> nn.Sequential:
    """Three blocks; where the number of channels grows, the first one halves height and width."""
    first = _Block(before, channels, stride=1 if before == channels else 2)
    return nn.Sequential(first, *(_Block(channels, channels, stride=1) for _ in range(_BLOCKS - 1)))


class _Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut is the identity unless the shape changes."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(before, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        same = before == channels and stride == 1
        self.shortcut = nn.Identity() if same else _projection(before, channels, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn1(self.conv1(maps)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))


def _projection(before: int, channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(before, channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def _conv3x3(before: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, channels, kernel_size=3, stride=stride, padding=1, bias=False)
