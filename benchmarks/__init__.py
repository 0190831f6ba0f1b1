"""What a step, a hypergradient, a sweep and an import cost, against the same thing by hand.

`python -m benchmarks` runs every part and prints one table; `python -m benchmarks.steps` one part.
The results land in `benchmarks/results/`, a small JSON file a part, with the machine described.
Nothing here asserts a time: machines are noisy, and a table is for reading.
"""
