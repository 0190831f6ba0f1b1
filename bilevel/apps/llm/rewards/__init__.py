"""Rewards, and losses on them and on log-ratios."""
