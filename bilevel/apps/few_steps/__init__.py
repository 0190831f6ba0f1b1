"""Lower problems of a few steps: what is learned is what those steps start from, or go along.

    min over x of  f(x, y_T(x))     where   y_T(x) is y after T gradient steps on g(x, ·)

x descends the derivative through the steps themselves (`BiOITD`, T from 1 to 5). Small forms of
four published uses:

- `reasoning`: a network that learns the facts of a world in three steps (RECKONING).
- `quantization`: an augmentation of the calibration images of a quantised network (MetaAug).
- `merging`: a mask on task vectors, so that fine-tuned networks merge into one (Concrete merging).
- `design`: the balance of two losses along which a sequence is designed (BIB).
"""
