"""The library, fastai style: `from proxy_attention.all import *`"""
from . import gallery, learner, review, shortcut_page  # noqa: F401  (they patch `Learner`)
from .audit import audit
from .callback import ProxyAttentionCB
from .erase import fills
from .targets import placements, targets
from .policy import Policy, presets
from .ranks import RankError
from .saliency import saliency_maps, saliency_methods
from .select import selectors
from .shortcut_test import Verdict
from .state import CycleReport
from .store import StoreError, purge

__all__ = ['CycleReport', 'Policy', 'ProxyAttentionCB', 'RankError', 'StoreError', 'Verdict', 'audit', 'fills',
           'placements', 'presets', 'purge', 'saliency_maps', 'saliency_methods', 'selectors', 'targets']
