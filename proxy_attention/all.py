"""The library floor, fastai style: `from proxy_attention.all import *`"""
from .audit import *
from .callback import *
from .core import *
from .cycles import *
from .erase import *
from .gallery import *
from .inject import *
from .layers import *
from .look import *
from .policy import *
from .saliency import *
from .select import *
from .store import *
from .trial import *
