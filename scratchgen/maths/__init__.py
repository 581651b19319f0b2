"""Formulas on arrays: densities, divergences, bounds; values in nats, with pullbacks."""
