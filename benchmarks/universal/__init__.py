"""`bl.solve` without a method on families of problems with known answers, of growing size.

`python -m benchmarks.universal` runs what is not kept yet (`--again` runs it anew), one instance
after the other, and keeps each as it ends. Times are of the processor, compilation included.
"""
