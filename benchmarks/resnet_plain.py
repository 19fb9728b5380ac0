"""The loop that most people would write for the ResNet: two loading workers, per-sample torchvision transforms."""

from collections.abc import Iterator

import torch
import torchvision.transforms as T
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from VarPro_resnet.cifar import MEAN, STD, Images
from VarPro_resnet.resnet import WIDTH, ResNet20

_WORKERS = 2


class PlainImages(Dataset):
    """A map-style data set: one image at a time is opened, cropped, flipped, converted and normalised."""

    def __init__(self, images: Images) -> None:
        self.pixels = images.train.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.train_labels.tolist()
        self.transform = T.Compose(
            [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[place])), self.labels[place]


class PlainLoop:
    """Training by ``optimizer``: ``varprom``, ``sgdm`` or ``shampoo``, that of torch_optimizer."""

    def __init__(
        self, optimizer: str, images: Images, batch_size: int, lmbda: float, time_scale: float, momentum: float
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = ResNet20(images.classes).to(self.device)
        self.lmbda, self.momentum = lmbda, momentum
        self.projects = optimizer == "varprom"
        self.optimizer = self._optimizer(optimizer, WIDTH * time_scale)
        loader = DataLoader(PlainImages(images), batch_size, shuffle=True, num_workers=_WORKERS)
        self.batches = self._endless(loader)

    def steps(self, count: int) -> None:
        """Train on the next ``count`` mini-batches."""
        for _ in range(count):
            images, labels = (tensor.to(self.device) for tensor in next(self.batches))
            targets = nn.functional.one_hot(labels, 10).float()
            features = self.network.features(images)
            if self.projects:
                self._project(features.detach(), targets)
            outer = self.network.readout.weight.T
            loss = nn.functional.mse_loss(features @ outer / WIDTH, targets) / (2 * self.lmbda)
            loss = loss + outer.square().mean() / 2
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loss = loss.item()

    def _optimizer(self, name: str, rate: float) -> torch.optim.Optimizer:
        if name == "varprom":
            self.network.readout.requires_grad_(False)
            return torch.optim.SGD(self.network.features.parameters(), rate)
        if name == "sgdm":
            return torch.optim.SGD(self.network.parameters(), rate, self.momentum)
        from torch_optimizer import Shampoo  # a test's dependency, which the other two do not need

        return Shampoo(self.network.parameters(), rate, self.momentum, epsilon=1e-4)

    def _project(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        samples = len(features)
        matrix = features.T @ features / (samples * WIDTH) + self.lmbda * torch.eye(WIDTH, device=self.device)
        solution = torch.linalg.solve(matrix, features.T @ targets / samples).T
        weight = self.network.readout.weight
        weight.data = self.momentum * weight + (1 - self.momentum) * solution

    @staticmethod
    def _endless(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader
