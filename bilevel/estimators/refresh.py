"""How often a direction is taken anew, and on how much of the data."""

from typing import NamedTuple

from bilevel.problem import Batch

ENDLESS = 16  # batches of a refresh from data that have no end


class Refresh(NamedTuple):
    """Settings of a refresh, read from the data where they were left open."""

    every: int | None  # steps from one to the next; as many as there are batches when absent
    restart: int | None  # batches of one; all the data when absent
    batches: int | None  # that make up the data

    @property
    def size(self) -> int:
        """Batches of a refresh."""
        return self.restart or self.batches or ENDLESS

    @property
    def period(self) -> int:
        """Steps from one refresh to the next."""
        return self.every or self.size

    @property
    def drawn(self) -> int:
        """How many of its batches a refresh draws; none where it takes all data at once."""
        return 0 if self.restart is None and self.batches is not None else self.size

    def takes_all(self, batch: Batch) -> bool:
        """Whether a refresh takes all the data, which `batch.whole` holds."""
        return self.drawn == 0 and batch.whole is not None


def most_batches(batches: Batch) -> int | None:
    """The batches of the level that has most; `None` where a level has no end."""
    if batches.upper is None or batches.lower is None:
        return None
    return max(batches.upper, batches.lower)
