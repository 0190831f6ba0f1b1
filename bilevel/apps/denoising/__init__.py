"""Denoising: learn the regularizer of a variational method from clean pictures.

The lower problem denoises a picture b, `min_y ½‖y − b‖² + R_x(y)`, summed over the pictures and
divided by the number of pixels; the upper loss is the squared error `½‖y*(x) − clean‖²` per pixel.
x holds the weights of the regularizer: `problem.TotalVariation` or `problem.FieldsOfExperts`.
MAID solves both to the accuracy that a descent step needs, and bounds the error of its
hypergradient.

`problem` has the two losses, `learn` a run on arrays, `run` the command `bilevel denoise FOLDER`.

Papers: Kunisch, Pock. "A bilevel optimization approach for parameter learning in variational
models". SIAM J. Imaging Sci. 2013. Salehi, Mukherjee, Roberts, Ehrhardt. "An adaptively inexact
first-order method for bilevel optimization". SIAM J. Math. Data Sci. 2025, arXiv:2308.10098.
"""
