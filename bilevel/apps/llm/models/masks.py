"""Attention masks: causal, within the sequence, and optionally within a window."""

from jaxtyping import Array, Bool, Int

from bilevel.apps.llm.models import attention as attentions

Segments = Int[Array, "batch time"] | Bool[Array, "batch time"]


EVERYWHERE = 2**30  # a window longer than any row


def segment_mask(segments: Int[Array, "batch time"]) -> Bool[Array, "batch time time"]:
    """The causal mask within each sequence of a row."""
    same = (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None]
    return same & attentions.causal(segments.shape[1])


def window_mask(
    queries: Array, keys: Array, window: int | Array
) -> Bool[Array, "batch queries keys"]:
    """True for keys less than `window` positions before a query."""
    return queries[:, :, None] - keys[:, None] < window


def attention_mask(mask, positions, window: int | None):
    """The mask and window arguments of an attention function."""
    if mask is None or window is None:
        return mask, window
    return mask & window_mask(positions, positions, window), None
