"""What a run logs, written for TensorBoard."""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """A callback that writes what is logged: `bl.solve(..., callbacks=[TensorBoard("runs/1")])`.

    Curves go into files in `folder`, which is made; `tensorboard --logdir runs` shows them.
    `close()` ends the file; it is closed when Python ends, too.

    Raises:
        ImportError: `tensorboardX` is not installed.
    """

    def __init__(self, folder: str | Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "writing for TensorBoard needs tensorboardX: pip install 'bilevel[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(folder))
        # Rows wait in a queue of the writer, and closing it is all that waits for them.
        self.close = weakref.finalize(self, self._writer.close)

    def __call__(self, step: int, state: Any, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name.replace(" ", "_"), value, step)
        self._writer.flush()
