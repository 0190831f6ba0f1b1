"""Lower-level steps, which move a policy towards the optimum for a reward."""
