"""ResNet-20 on CIFAR-10 by stochastic VarPro in two ways, by SGD with momentum, or by Shampoo.

Square loss of one-hot targets and a ridge penalty on the outer weights u, penalty centre 0 (paper, Section 6.2).
Without --dataset cifar10, scikit-learn's handwritten digits stand in for CIFAR-10: they need no download. Results go to
results/ beside this script, one file per seed.

    python Experiment.py --optimizer varprom --batch_size 64 --epochs 20
    python CIFAR10_VarProM.py --lmbda 1e-3 --batch_size 64 --time_scale 1e-3 --momentum 0.9 --epochs 100
    python CIFAR10_SGDM.py --lmbda 1e-3 --batch_size 64 --time_scale 1e-3 --momentum 0.9 --epochs 100
    python CIFAR10_Shampoo.py --lmbda 1e-3 --batch_size 64 --time_scale 1e-2 --momentum 0.9 --epochs 100

Measured on two calm cores at batch size 128: varprom 1080, sgdm 1100, shampoo 990 images/s, so that 110 passes take
3 min on the digits and 1.5 h or more on CIFAR-10. Where the cores are busy, threads wait for each other and one is
faster by far (500 images/s on one core): a trial at the start chooses, unless --threads does.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from torch.optim import SGD

from varpro import cli
from VarPro_resnet import runs
from VarPro_resnet.resnet import WIDTH, ResNet20
from VarPro_resnet.runs import Numbers
from VarPro_resnet.shampoo import Shampoo
from VarPro_resnet.training import Descent, RunningVarPro, VarProM

OPTIMIZERS = {  # with the numbers of the published curves
    "varprom": Numbers(time_scale=1e-3, momentum=0.5),
    "sgdm": Numbers(time_scale=1e-3, momentum=0.9),
    "shampoo": Numbers(time_scale=1e-2, momentum=0.0),
    "varpro-running": Numbers(time_scale=1e-3, momentum=0.9),  # not in the paper
}


def step(network: ResNet20, options: Namespace) -> Descent:
    """The training step of the chosen optimizer."""
    rate = WIDTH * options.time_scale  # eta = M * time_scale
    shared = {"lmbda": options.lmbda, "mixed_precision": options.mixed_precision}
    if options.optimizer == "varprom":
        # u is an average of the ridge solutions of the mini-batches; the features take plain gradient steps
        return VarProM(network, SGD(network.features.parameters(), rate), averaging=options.momentum, **shared)
    if options.optimizer == "varpro-running":
        descent = SGD(network.features.parameters(), rate, options.momentum)
        return RunningVarPro(network, descent, memory=options.memory, **shared)
    if options.optimizer == "sgdm":
        descent = SGD(network.parameters(), rate, options.momentum)
    elif options.optimizer == "shampoo":
        variant, every = options.shampoo_variant, options.update_every
        descent = Shampoo(network.parameters(), rate, options.momentum, 1e-4, every, variant)
    else:
        raise NotImplementedError(f"a step of {options.optimizer!r}")
    return Descent(network, descent, **shared)


def parser(optimizer: str | None = None, dataset: str = "digits", description: str = __doc__) -> ArgumentParser:
    """The options of this experiment with its numbers; ``optimizer`` names one where the user has no choice."""
    options = cli.parser(description)
    runs.add_problem(options, dataset=dataset, lmbda=1e-3)
    runs.add_optimizer(options, OPTIMIZERS, optimizer)
    runs.add_training(options, batch_size=64, epochs=100, final_epochs=10)
    runs.add_run(options)
    return options


@cli.command
def main(
    argv: Sequence[str] | None = None,
    *,
    optimizer: str | None = None,
    dataset: str = "digits",
    description: str = __doc__,
) -> None:
    """The runs that the options name, one after the other."""
    options = runs.parse(parser(optimizer, dataset, description), argv, OPTIMIZERS, optimizer)
    for run in runs.runs(options):
        runs.perform(run, step(run.network, options), options)


if __name__ == "__main__":
    main()
