"""Lower-level steps: how a policy moves towards its best under a reward."""
