"""Data sets, as integer codes on the host."""
