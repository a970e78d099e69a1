"""Masked video pre-training as an OpenMMLab plugin.

Importing the package repairs what the pinned OpenMMLab releases break on today's
torch (see ``compat``). Models, data sets and hooks are imported when a config first
names one of them, through the locations in ``registry``.
"""

from videomac_mm import compat
from videomac_mm.version import __version__

__all__ = ['__version__']

compat.apply()
