"""Align language models by bilevel inverse reinforcement learning (`bilevel[llm]`)."""
