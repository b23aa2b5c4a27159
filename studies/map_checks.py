"""Did the network use what its map shows, and does the map depend on what was learnt? See `questions/map_checks`."""
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from proxy_attention.core import check_choice, check_number, no_footprint, preserve_rng
from proxy_attention.gallery import overlay_heatmap
from studies.map_agreement import all_maps, check_images, check_maps, mean_or_nan, rank_correlation, says_something
from proxy_attention.layers import AttentionBlocks, FeatureLayer, named_layer, unwrap
from proxy_attention.saliency import method_layer, saliency_methods
from proxy_attention.scan import layer_of

def blurred(x):
    "So strongly that nothing can be told: a Gaussian of an eighth of the shorter side"
    side = min(x.shape[2:])
    return gaussian_blur(x.float(), [2*(side//4) + 1]*2, [side/8]*2).to(x.dtype)

blanks = {'zero': torch.zeros_like, 'mean': lambda x: x.mean((2, 3), keepdim=True).expand_as(x), 'blur': blurred}

def pixel_ranks(
    maps, # (N,H,W)
    seed:int=0, # Decides among equals
) -> np.ndarray:
    "The place of each pixel (N,H,W) in its map's order, 0 for the brightest; equals in random order"
    flat = check_maps('maps', maps).flatten(1).numpy()
    lots = np.random.default_rng(check_number('seed', seed, 0, whole=True)).random(flat.shape)
    order = np.lexsort((lots, -flat), axis=-1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(flat.shape[1]), flat.shape), axis=-1)
    return ranks.reshape(np.shape(maps))

def faithfulness(
    model:nn.Module, # An image classifier
    x:torch.Tensor, # (N,C,H,W), normalised, as the model takes it
    maps, # (N,H,W) of these images, in [0,1]
    target=None, # Class whose probability is followed: None (the predicted one), an int for all, or (N,) class indices
    steps:int=20, # In how many steps all pixels are taken or given
    delete:str='zero', # What deleted pixels become, a key of `blanks`; average drop hides by it too
    insert:str='blur', # What insertion starts from, a key of `blanks`
    seed:int=0, # Order of equally bright pixels
    bs:int=64, # Images at a time
) -> dict:
    """Deletion and insertion with their curves, average drop (percent) and increase (share)

    Means over the images whose map says something."""
    maps = check_maps('maps', maps)
    steps,bs = (check_number(k, v, 1, whole=True) for k,v in (('steps', steps), ('bs', bs)))
    x = check_images(x, len(maps))
    check_choice('delete', delete, blanks)
    check_choice('insert', insert, blanks)
    if x.shape[2:] != maps.shape[1:]:
        raise ValueError(f"maps are {tuple(maps.shape[1:])} and images {tuple(x.shape[2:])}: they must be of one size.")
    if maps.max() > 1: raise ValueError("maps must lie in [0,1], as saliency_maps gives them.")
    seen = says_something(maps)
    ranks = torch.from_numpy(pixel_ranks(maps, seed))[seen]
    classes = _classes(model, x, target, bs)[seen]
    x,maps,rows = x[torch.from_numpy(seen)], maps[seen], []
    p = next(model.parameters())
    with no_footprint(model), torch.no_grad():
        for i in range(0, len(x), bs):
            xb,m = x[i:i+bs].to(p.device, p.dtype), maps[i:i+bs, None].to(p.device, p.dtype)
            rank,c = (v[i:i+bs, None].to(p.device) for v in (ranks, classes))
            def prob(pic): return model(pic).double().softmax(1).gather(1, c)[:, 0].cpu()
            empty,start = blanks[delete](xb), blanks[insert](xb)
            taken = [rank < round(k/steps*m[0].numel()) for k in range(steps+1)]
            deleted = [prob(torch.where(t, empty, xb)) for t in taken]
            inserted = [prob(torch.where(t, xb, start)) for t in taken]
            rows.append(torch.stack([*deleted, *inserted, prob(m*xb + (1-m)*empty)], 1))
    measured = 'deletion', 'insertion', 'average_drop', 'increase', 'deletion_curve', 'insertion_curve'
    if not rows: return dict(n=len(seen), flat=len(seen), **dict.fromkeys(measured))
    gone,back,shown = torch.cat(rows).split([steps+1, steps+1, 1], 1)
    whole,shown = gone[:, 0], shown[:, 0]
    drop = (whole - shown).clamp(min=0) / whole.clamp(min=1e-12)
    return dict(n=len(seen), flat=int((~seen).sum()), deletion=_area(gone), insertion=_area(back),
                average_drop=100*drop.mean().item(), increase=(shown > whole).double().mean().item(),
                deletion_curve=gone.mean(0).tolist(), insertion_curve=back.mean(0).tolist())

def _area(curves): return float(trapezoid(curves.numpy(), dx=1/(curves.shape[1]-1), axis=1).mean())

def _classes(model, x, target, bs):
    "Classes (N,) to explain"
    p = next(model.parameters())
    with no_footprint(model), torch.no_grad():
        parts = [model(x[i:i+bs].to(p.device, p.dtype)).float().cpu() for i in range(0, len(x), bs)]
    logits = torch.cat(parts)
    if target is None: return logits.argmax(1)
    c = torch.as_tensor(target).cpu()
    if c.is_floating_point() or c.dtype == torch.bool or c.dim() > 1:
        raise TypeError(f"target={target!r} must be None (the predicted class), a class index or (N,) class indices.")
    if c.dim() == 1 and len(c) != len(x):
        raise ValueError(f"target has {len(c)} entries for {len(x)} images; give one class index for each, one "
                         "int for all, or None.")
    if c.min() < 0 or c.max() >= logits.shape[1]:
        raise ValueError(f"target={target!r} holds a class outside of 0 to {logits.shape[1]-1}.")
    return c.long().expand(len(x))

def parameter_layers(
    model:nn.Module, # Any network
    x:torch.Tensor, # Images as it takes them; one is passed through
) -> list:
    "Names of the modules that hold parameters of their own, in the order in which they are run"
    started,handles = [], []
    try:
        for name,m in model.named_modules():
            if not any(True for _ in m.parameters(recurse=False)): continue
            handles.append(m.register_forward_pre_hook(lambda m, i, name=name: started.append(name)))
        with no_footprint(model), torch.no_grad(): model(x[:1].clone())
    finally:
        for h in handles: h.remove()
    return list(dict.fromkeys(started))

def randomize_parameters(
    module:nn.Module, # Its own parameters are overwritten, not its children's
):
    "New random parameters, as the layer initialises itself; where it doesn't say how, its numbers are shuffled"
    if hasattr(module, 'reset_parameters'): return module.reset_parameters()
    with torch.no_grad():
        for p in module.parameters(recurse=False):
            p.copy_(p.flatten()[torch.randperm(p.numel()).to(p.device)].view_as(p))

def randomisation_check(
    model:nn.Module, # An image classifier; not changed
    x:torch.Tensor, # (N,C,H,W), normalised, as the model takes it
    method:str='gradcam', # A key of `saliency_methods`
    target=None, # Class explained at every step: None (predicted as trained), an int for all, or (N,) indices
    steps:int|None=None, # In how many steps all layers are forgotten; None: one layer a step
    seed:int=0, # Of the random parameters
    bs:int=64, # Images at a time
    layer=None, # As in `saliency_maps`
    reshape=None, # As in `saliency_maps`
) -> dict:
    "Mean rank correlation with the original maps while layers are forgotten from the head down"
    x,bs = check_images(x, None), check_number('bs', bs, 1, whole=True)
    if steps is not None: steps = check_number('steps', steps, 1, whole=True)
    seed = check_number('seed', seed, 0, 2**63-1, whole=True)
    model = unwrap(model)
    if isinstance(layer, nn.Module): layer = named_layer(model, layer)[0] # the copy has its own
    if isinstance(layer, FeatureLayer): layer,reshape = layer.name, layer.reshape
    if isinstance(layer, AttentionBlocks): layer,reshape = None, layer.reshape
    classes = _classes(model, x, target, bs)
    several = type(layer) in (list, tuple)
    if several:
        check_choice('method', method, saliency_methods)
        layer,reshape = method_layer(model, x[:1].to(next(model.parameters())), method, layer, reshape), None
    def maps_of(m):
        at = layer_of(m, layer) if several else layer
        return all_maps(m, x, classes, bs, method=method, layer=at, reshape=reshape)
    first,other = maps_of(model), copy.deepcopy(model)
    p = next(model.parameters())
    names = parameter_layers(other, x[:1].to(p.device, p.dtype))[::-1]
    rows = []
    for k,group in enumerate(np.array_split(np.arange(len(names)), min(steps or len(names), len(names)))):
        with preserve_rng():
            torch.manual_seed(seed + k)
            for i in group: randomize_parameters(other.get_submodule(names[i]))
        got = rank_correlation(first, maps_of(other))
        known = np.isfinite(got)
        rows.append(dict(forgotten=int(group[-1])+1, down_to=names[group[-1]],
                         rank_correlation=mean_or_nan(got[known]), flat=int((~known).sum())))
    return dict(method=method, n=len(x), layers=len(names), rows=rows, rank_correlation=rows[-1]['rank_correlation'])

def draw_maps(
    images, # (N,C,H,W) in [0,1] (floats), or (N,H,W,3) whole numbers from 0 to 255
    maps:dict, # Title of a column -> its maps (N,H,W) in [0,1]
    labels=None, # Words left of each image
    outlines=None, # (N,H,W): what is drawn round, such as a truth mask
    strength:float=0.6, # As in `overlay_heatmap`
    side:float=1.5, # Of a picture, in inches
):
    "The pictures in the first column, and beside each what every column's maps say of it; the figure"
    pics = torch.as_tensor(images).detach().as_subclass(torch.Tensor).cpu()
    if pics.ndim != 4: raise ValueError(f"images must be (N,C,H,W) or (N,H,W,3), got {tuple(pics.shape)}.")
    if not pics.is_floating_point(): pics = pics.permute(0, 3, 1, 2) / 255
    if pics.shape[1] not in (1, 3): raise ValueError(f"images must have one or three channels, got {pics.shape[1]}.")
    if pics.min() < 0 or pics.max() > 1: raise ValueError("images must lie in [0,1]: undo the normalisation first.")
    if not isinstance(maps, dict) or not maps:
        raise TypeError("maps must be a dictionary from a column's title to its maps (N,H,W).")
    checked = {k: check_maps(f'maps[{k!r}]', v) for k,v in maps.items()}
    for k,v in checked.items():
        if len(v) != len(pics) or v.max() > 1:
            raise ValueError(f"maps[{k!r}] must be {len(pics)} maps in [0,1], got {len(v)} up to {v.max():.3g}.")
    if labels is not None and len(labels) != len(pics):
        raise ValueError(f"labels has {len(labels)} entries for {len(pics)} images.")
    if outlines is not None and tuple(np.shape(outlines)) != (len(pics), *pics.shape[2:]):
        raise ValueError(f"outlines must be {(len(pics), *pics.shape[2:])} for these images, "
                         f"got {tuple(np.shape(outlines))}.")
    strength = check_number('strength', strength, 0, 1)
    h,w = pics.shape[2:]
    size = side*(1 + len(maps)) + (.8 if labels is not None else 0), side*h/w*len(pics) + .3
    fig,axs = plt.subplots(len(pics), 1 + len(maps), figsize=size, squeeze=False,
                           layout='constrained')
    shown = (255*pics.expand(-1, 3, h, w)).round().byte().permute(0, 2, 3, 1).numpy()
    for i,row in enumerate(axs):
        for ax,(title,m) in zip(row, {'': None, **checked}.items()):
            ax.imshow(shown[i] if m is None else overlay_heatmap(shown[i], m[i], strength))
            if outlines is not None and m is not None:
                ax.contour(np.asarray(outlines[i]), levels=[.5], colors='cyan', linewidths=.8)
            ax.set(xticks=[], yticks=[])
            if i == 0: ax.set_title(title, fontsize=9)
        if labels is not None: row[0].set_ylabel(labels[i], rotation=0, ha='right', va='center', fontsize=8)
    return fig
