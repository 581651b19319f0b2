"""Faster twins of readable functions. Nothing needs this folder: without it, all runs as it reads.

Importing it registers the twins (core/twins.py), each with the condition under which it applies.
"""

from scratchgen.fast import few_channels as few_channels
from scratchgen.fast import fused as fused
from scratchgen.fast import winograd as winograd
