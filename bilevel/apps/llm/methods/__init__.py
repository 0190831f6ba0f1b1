"""Alignment methods behind one interface."""
