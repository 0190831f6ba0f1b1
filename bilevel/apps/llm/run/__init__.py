"""One run from settings to a saved model."""
