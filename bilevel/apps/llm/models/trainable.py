"""The trainable parameters of a decoder: a LoRA adapter of the last layers, or all of them."""

from dataclasses import replace
from typing import NamedTuple

from jaxtyping import PyTree

from bilevel.apps.llm.models import lora, parameters
from bilevel.apps.llm.models.config import Config
from bilevel.typing import RandomKey


class Adapter(NamedTuple):
    """A LoRA adapter of the last layers; all other parameters are frozen.

    Attributes:
        rank: rank of every adapted kernel.
        layers: number of adapted last layers; all if `None`.
        targets: adapted kernels of a layer.
        scale: factor of the product A B; usually 2.
    """

    rank: int = 8
    layers: int | None = None
    targets: tuple[str, ...] = lora.TARGETS
    scale: float = 2.0

    def below(self, config: Config) -> int:
        """The number of frozen layers below the first adapted one."""
        return lora.below(config.layers, config.layers if self.layers is None else self.layers)

    def _top(self, config: Config) -> Config:
        below = self.below(config)
        return replace(config, layers=config.layers - below, windows=config.windows[below:])

    def init(self, config: Config, key: RandomKey) -> PyTree:
        """Initial adapters, which do not change the model."""
        targets = tuple(t for t in self.targets if t != "gate" or config.gated)
        return lora.init(self._top(config), key, rank=self.rank, targets=targets)

    def attach(self, config: Config, params: parameters.Params, y: PyTree) -> parameters.Params:
        return lora.attach(parameters.unstack(params), y, scale=self.scale)

    def merge(self, config: Config, params: parameters.Params, y: PyTree) -> parameters.Params:
        return lora.merge(parameters.unstack(params), y, scale=self.scale)


class FullFineTune(NamedTuple):
    """All parameters are trained; y is their tree."""

    def below(self, config: Config) -> int:
        return 0

    def attach(self, config, params, y):
        return y

    merge = attach


Trained = Adapter | FullFineTune
