"""Deep generative models from scratch: forward, backward, and every equation tested.

There is nothing to import from here but the version; take names from where they are defined. Read
in this order: core, layers, maths, nets, models, training. Beside them stands fast/, whose faster
twins answer for some of their functions; it is taken up here if it is there, and may be removed.
"""

from importlib import import_module

from scratchgen.core.optional import is_there
from scratchgen.core.version import __version__ as __version__

if is_there("scratchgen.fast"):
    import_module("scratchgen.fast")
