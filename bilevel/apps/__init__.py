"""Applications: each builds a problem, loads or takes data, and picks settings that work."""
