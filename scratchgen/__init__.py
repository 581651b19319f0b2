"""Deep generative models from scratch: forward, backward, and every equation tested.

There is nothing to import from here but the version; take names from where they are defined. Read
in this order: core, layers, maths, nets, models, training.
"""

from scratchgen.core.version import __version__ as __version__
