"""Small ResNets, images for them and steps of training, for the tests of several files."""

import torch

from VarPro_resnet import cifar, runs, training
from VarPro_resnet.Experiment import OPTIMIZERS, parser, step
from VarPro_resnet.resnet import ResNet20
from VarPro_resnet.training import Plan

CLASSES = 3
PLAN = Plan(images=40, batch_size=16, epochs=2, final_epochs=1)  # mini-batches of 16, 16 and 8
REPLAYED = ["varprom", "varpro-running", "sgdm"]  # optimizers whose steps go through static buffers


def colours(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images, each class with more of one colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randint(0, 180, (count, 3, 32, 32), generator=generator)
    images[torch.arange(count), labels] += 70
    return images.to(torch.uint8), labels


def tiny_images(train: int = PLAN.images) -> cifar.Images:
    """``train`` images to learn from and 24 for tests."""
    return cifar.Images(*colours(train, 0), *colours(24, 1), (0.4,) * 3, (0.2,) * 3, True, CLASSES, "tiny")


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> ResNet20:
    """With the weights that ``seed`` draws."""
    torch.manual_seed(seed)
    return ResNet20(CLASSES).to(dtype)


def chosen_step(of: ResNet20, optimizer: str, *arguments: str) -> training.Descent:
    """A step of ``optimizer`` as its script makes it from ``arguments``."""
    return step(of, runs.parse(parser(optimizer), list(arguments), OPTIMIZERS, optimizer))
