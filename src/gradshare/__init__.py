"""gradshare: gradient-based meta-learning with gradient sharing.

`__init__.pyi` has the public names. Each is imported when it is first used: the program shows its
help without torch.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
