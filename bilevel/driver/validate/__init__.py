"""Wrong uses, refused before anything compiles: what was wrong, what is needed, how to mend it."""

from bilevel.driver.validate.checkpoint import as_checkpoint
from bilevel.driver.validate.data import check_blocks
from bilevel.driver.validate.problem import (
    check_each_loss,
    check_losses,
    check_method,
    check_problem,
    check_some_blocks,
    check_step,
    uncoupled,
)
from bilevel.driver.validate.settings import (
    as_callbacks,
    check_arguments,
    check_concrete,
    check_metrics,
    check_options,
    check_steps,
)
from bilevel.driver.validate.starts import (
    check_rows,
    check_sets,
    check_start,
    check_state,
    check_variable,
)

__all__ = [
    "as_callbacks",
    "as_checkpoint",
    "check_arguments",
    "check_blocks",
    "check_concrete",
    "check_each_loss",
    "check_losses",
    "check_method",
    "check_metrics",
    "check_options",
    "check_problem",
    "check_rows",
    "check_sets",
    "check_some_blocks",
    "check_start",
    "check_state",
    "check_step",
    "check_steps",
    "check_variable",
    "uncoupled",
]
