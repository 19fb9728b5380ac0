"""ResNet-20 on CIFAR-10 (paper, Section 6.2): the modules that serve these scripts alone."""
