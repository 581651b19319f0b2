"""Tools to test the maths with, ours or yours: oracles, Monte Carlo checks, strategies."""
