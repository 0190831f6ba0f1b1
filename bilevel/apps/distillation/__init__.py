"""Data-set distillation by kernel ridge regression: a few images that stand for all.

The upper variable is a small data set (X, Y). The lower problem trains students on it; for a
linear head on the features h of a student it is solved in closed form, so the hypergradient is
exact: `min ½ mean ‖Y_t − h(X_t) W*‖²`, `W* = Fᵀ (F Fᵀ + λ I)⁻¹ Y`, `F = [h(X), 1]`. A pool of
students, each trained on (X, Y) by gradient steps and drawn anew now and then, keeps the images
from fitting one network. With one-hot labels as targets this is plain distillation; with the
representation of a teacher it is KRR-ST, which uses no labels.

    found = distillation.distil(images, one_hot, distillation.Learned(images[:50], one_hot[:50]))

References: Lee, Lee, Kim, Kawaguchi, Shin, Hwang. "Self-supervised dataset distillation for
transfer learning". ICLR 2024, arXiv:2310.06511. Nguyen, Chen, Lee. "Dataset meta-learning from
kernel ridge-regression". ICLR 2021, arXiv:2011.00050.
"""

from bilevel.apps.distillation.problem import Distillation, Learned, Pool
from bilevel.apps.distillation.run import Distilled, accuracy, distil, method, pretrain
from bilevel.apps.distillation.students import Student, convnet, head, linear, with_one

__all__ = [
    "Distillation",
    "Distilled",
    "Learned",
    "Pool",
    "Student",
    "accuracy",
    "convnet",
    "distil",
    "head",
    "linear",
    "method",
    "pretrain",
    "with_one",
]
