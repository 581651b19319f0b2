"""Measures over whole data sets, computed on the host."""
