"""A small model learns what TOFU tells of invented authors, and is to forget some of them."""
