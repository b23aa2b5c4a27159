"""Are saliency maps on the thing, and do two networks look at the same places? Plain tensors in, plain numbers out.

What can't be said is `None`. Judge maps with another method than the one that was used for erasing.
"""
import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from proxy_attention.core import check_number
from proxy_attention.erase import saliency_masks
from proxy_attention.lab.metrics.maps import compared, map_quality
from proxy_attention.saliency import saliency_maps

def check_maps(name, maps):
    "Maps (N,H,W) as float64 on the CPU, or an error"
    try: maps = torch.as_tensor(maps).detach().as_subclass(torch.Tensor).double().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be an array (N,H,W), got {type(maps).__name__}.") from None
    if maps.ndim != 3: raise ValueError(f"{name} must be (N,H,W), got {tuple(maps.shape)}.")
    if not len(maps): raise ValueError(f"{name} is empty: there is nothing to judge.")
    if not torch.isfinite(maps).all() or (maps < 0).any():
        raise ValueError(f"{name} must be finite and at least 0, as saliency_maps gives them.")
    return maps

def says_something(maps): return (maps.flatten(1).amax(1) > maps.flatten(1).amin(1)).numpy()

def mean_or_nan(values): return float(np.mean(values)) if len(values) else None

def check_images(x, n):
    "Images (N,C,H,W), or an error"
    if not torch.is_tensor(x) or x.dim() != 4 or not x.is_floating_point():
        raise TypeError("x must be a float tensor (N,C,H,W), "
                        f"got {tuple(x.shape) if torch.is_tensor(x) else type(x).__name__}.")
    if n is not None and len(x) != n: raise ValueError(f"x holds {len(x)} images for {n} maps.")
    return x.as_subclass(torch.Tensor)

def all_maps(
    model:nn.Module, # An image classifier
    x:torch.Tensor, # (N,C,H,W), normalised, as the model takes it
    target=None, # Class explained: None (the predicted one), an int for all, or (N,) class indices
    bs:int=64, # Images at a time
    **kw, # `method`, `layer`, `baselines` and others, as in `saliency_maps`; no baselines: a few of `x`
) -> torch.Tensor: # (N,H,W) on the CPU
    "Saliency maps of many images, a batch at a time"
    x,bs = check_images(x, None), check_number('bs', bs, 1, whole=True)
    each = target is not None and np.ndim(target) == 1
    if each and len(target) != len(x):
        raise ValueError(f"target has {len(target)} entries for {len(x)} images; "
                         "give one class index for each, one int for all, or None.")
    p = next(model.parameters())
    if kw.get('baselines') is None: kw |= compared(kw.get('method', 'gradcam'), x)
    if kw.get('baselines') is not None: kw['baselines'] = kw['baselines'].to(p.device, p.dtype)
    return torch.cat([saliency_maps(model, x[i:i+bs].to(p.device, p.dtype),
                                    target[i:i+bs] if each else target, **kw).cpu() for i in range(0, len(x), bs)])

def best_iou(
    maps, # (N,H,W) saliency in [0,1]
    masks, # (N,H,W): where the thing is
    thresholds=tuple(np.linspace(0, .99, 100).round(2).tolist()), # Tried; a pixel belongs to the map if it is above
) -> dict:
    "Mean intersection over union of maps and masks, at the one threshold for all images that gives most"
    maps = check_maps('maps', maps)
    if maps.max() > 1:
        raise ValueError("maps must lie in [0,1], as saliency_maps gives them, "
                         "for a threshold to mean the same in each.")
    masks = torch.as_tensor(masks).cpu() > 0
    if masks.shape != maps.shape:
        raise ValueError(f"masks must be {tuple(maps.shape)} as maps are, got {tuple(masks.shape)}.")
    thresholds = [check_number('thresholds', t, 0, 1) for t in np.atleast_1d(thresholds).tolist()]
    if not thresholds: raise ValueError("thresholds is empty: give at least one.")
    known = maps.flatten(1).any(1) & masks.flatten(1).any(1)
    if not known.any(): return dict(iou=None, threshold=None, n=0)
    maps,masks = maps[known].flatten(1), masks[known].flatten(1)
    means = [(((maps > t) & masks).sum(1) / ((maps > t) | masks).sum(1)).double().mean().item() for t in thresholds]
    best = int(np.argmax(means))
    return dict(iou=means[best], threshold=thresholds[best], n=int(known.sum()))

def localisation(
    maps, # (N,H,W) saliency in [0,1]
    masks, # (N,K,H,W): for each image, K masks
    names, # K names of masks
    thresholds=None, # For the IoU, as in `best_iou`; None: its own
) -> dict:
    "`map_quality`, and the IoU of each mask at its best threshold"
    out,masks = map_quality(maps, masks, names), torch.as_tensor(masks)
    for k,name in enumerate(names):
        got = best_iou(maps, masks[:, k], **({} if thresholds is None else dict(thresholds=thresholds)))
        out |= {f'iou_{name}': got['iou'], f'iou_threshold_{name}': got['threshold']}
    return out

def rank_correlation(
    a, # (N,H,W) maps
    b, # (N,H,W) others of the same images
) -> np.ndarray:
    "Spearman's rank correlation (N,) of the pixels of two maps; NaN where one of them is constant"
    a,b = check_maps('a', a), check_maps('b', b)
    if a.shape != b.shape:
        raise ValueError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}: "
                         "maps must be of the same images and of one size.")
    ra,rb = (rankdata(m.flatten(1).numpy(), axis=1) for m in (a, b))
    ra,rb = (r - r.mean(1, keepdims=True) for r in (ra, rb))
    spread = np.sqrt((ra**2).sum(1) * (rb**2).sum(1))
    return np.divide((ra*rb).sum(1), spread, out=np.full(len(a), np.nan), where=spread > 0)

def map_agreement(
    maps_a, # (N,H,W) saliency in [0,1]
    maps_b, # (N,H,W), another network's of the same images
    area:float=0.1, # Share of the pixels whose overlap is measured, the brightest
    masks=None, # (N,K,H,W) truth masks, or None
    names=(), # K names of masks
) -> dict:
    """Rank correlation and IoU of the top areas, means over the images where both maps say something

    With masks, both against truth."""
    a,b = check_maps('maps_a', maps_a), check_maps('maps_b', maps_b)
    if a.shape != b.shape:
        raise ValueError(f"maps_a are {tuple(a.shape)} and maps_b {tuple(b.shape)}: "
                         "they must be of the same images and of one size.")
    area = check_number('area', area, 0, 1, open_low=True)
    if masks is None and len(names): raise ValueError("names are given without masks.")
    both = says_something(a) & says_something(b)
    out = dict(n=len(a), flat_a=int((~says_something(a)).sum()), flat_b=int((~says_something(b)).sum()), area=area)
    top_a,top_b = (saliency_masks(m[both].numpy(), area=area) for m in (a, b))
    iou = (top_a & top_b).sum((1, 2)) / np.maximum((top_a | top_b).sum((1, 2)), 1)
    out |= dict(rank_correlation=mean_or_nan(rank_correlation(a[both], b[both])) if both.any() else None,
                iou_top=mean_or_nan(iou), iou_chance=area/(2-area))
    return out if masks is None else out | dict(a=localisation(a, masks, names), b=localisation(b, masks, names))
