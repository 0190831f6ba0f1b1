"""`python -m benchmarks.universal`: what is not kept yet is run; the figure is drawn anew."""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax

from benchmarks.universal import runs, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10,100,1000")
    parser.add_argument("--only", default="", help="families, separated by commas; all when empty")
    parser.add_argument("--who", default=",".join(runs.WHO))
    parser.add_argument("--again", action="store_true", help="run also what is kept")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sizes = [int(size) for size in given.sizes.split(",")]
    only = [name.strip() for name in given.only.split(",") if name.strip()]
    for size in sizes:
        for who in given.who.split(","):
            runs.run(size, who, only, again=given.again)
    print(show.table(runs.kept()))
    show.draw(runs.kept())


if __name__ == "__main__":
    main()
