"""From names and options to a run: the configuration, and what is made of it.

`__init__.pyi` has the names. Each is imported when it is first used: `RunConfig` needs no torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
