"""Deep generative models from scratch: forward, backward, and every equation tested.

There is nothing to import from here but the version; take names from where they are defined. Read
in this order: core, layers, maths, nets, models, training. Beside them stands fast/, whose faster
twins answer for some of their functions; it is taken up here if it is there, and may be removed.
"""

from importlib import import_module
from importlib.util import find_spec

from scratchgen.core.version import __version__ as __version__

if find_spec("scratchgen.fast"):
    import_module("scratchgen.fast")
