"""Reward models, and losses of rewards and log-ratios."""
