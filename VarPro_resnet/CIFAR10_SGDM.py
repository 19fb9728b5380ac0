"""ResNet-20 on CIFAR-10 by SGD with momentum in every parameter.

Section 6.2 of the paper; Experiment.py says what is computed. Results go to results/ beside this script.

    python CIFAR10_SGDM.py --lmbda 1e-3 --batch_size 64 --time_scale 1e-3 --momentum 0.9 --epochs 100

for --batch_size 64, 128, 256, 512, 1024.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

from VarPro_resnet.Experiment import main

CHOICES = {"optimizer": "sgdm", "dataset": "cifar10", "description": __doc__}

if __name__ == "__main__":
    main(**CHOICES)
