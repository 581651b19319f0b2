"""Layers: callables x -> (y, pullback)."""
