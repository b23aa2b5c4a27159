"""Copies in every kind of DataLoaders: the right label, really drawn, nothing else changed."""
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.data import PartialDL, WeightedDL  # noqa: F401  (they patch Datasets)
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.load import DataLoader
from fastai.data.transforms import (Categorize, ColReader, IntToFloatTensor, MultiCategorize, OneHotEncode, RandomSplitter, ToTensor,
                                    get_image_files,
                                    parent_label)
from fastai.interpret import ClassificationInterpretation
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import accuracy_multi
from fastai.torch_core import TensorCategory
from fastai.vision.core import PILImage
from fastai.vision import learner as vision_learning  # noqa: F401  (teaches plot_top_losses to draw images)
from fastai.vision.data import ImageBlock, ImageDataLoaders
from PIL import Image
from torch import nn

from kit import (CLASSES, SIDE, Coded, Squish, cb_of, coded_dls, last_of, logits_of, make_learner, quiet_cb, read_rgb, seed_all, shapes_dls,
                 tiny_model, to_float)
from proxy_attention.dataloaders import ProxyDataset

squish = Squish()
common = dict(bs=8, num_workers=0)


# -- ways to build DataLoaders --------------------------------------------------------------------------------------------------------------------

def label_from_name(name): return str(name).split('_')[0]
def label_from_path(path): return Path(path).parent.name

def frame(root):
    files = get_image_files(root).sorted()
    rows = [(f.relative_to(root).as_posix(), f.parent.name, f'shape {f.parent.name}', k % 4 == 3) for k,f in enumerate(files)]
    return pd.DataFrame(rows, columns=['name', 'label', 'labels', 'is_valid'])

def from_folder(root): return shapes_dls(root)

def from_name_func(root):
    return ImageDataLoaders.from_name_func(root, get_image_files(root), label_from_name, valid_pct=0.25, seed=0, item_tfms=squish, **common)

def from_path_func(root):
    return ImageDataLoaders.from_path_func(root, get_image_files(root), label_from_path, valid_pct=0.25, seed=0, item_tfms=squish, **common)

def from_df(root): return ImageDataLoaders.from_df(frame(root), root, valid_col='is_valid', item_tfms=squish, **common)

def from_df_multi(root):
    return ImageDataLoaders.from_df(frame(root), root, label_col='labels', label_delim=' ', valid_col='is_valid', item_tfms=squish,
                                    **common)

def from_lists(root):
    files = get_image_files(root).sorted()
    return ImageDataLoaders.from_lists(root, list(files), [f.parent.name for f in files], valid_pct=0.25, seed=0, item_tfms=squish,
                                       **common)

def block_of_function(root):
    def get_x(row): return root/row[0]
    def get_y(row): return row[1]
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda df: list(df[['name', 'label']].itertuples(index=False)),
                      get_x=get_x, get_y=get_y,
                      splitter=RandomSplitter(0.25, seed=0), item_tfms=squish)
    return block.dataloaders(frame(root), **common)

def block_of_columns(root):
    block = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), get_x=ColReader('name', pref=root),
                      get_y=ColReader('labels', label_delim=' '),
                      splitter=RandomSplitter(0.25, seed=0), item_tfms=squish)
    return block.dataloaders(frame(root), **common)

def block_of_items(root):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=RandomSplitter(0.25, seed=0),
                      item_tfms=squish)
    return block.dataloaders(root, **common)

def datasets_of(root):
    files = get_image_files(root)
    return Datasets(files, [[PILImage.create], [parent_label, Categorize()]], splits=RandomSplitter(0.25, seed=0)(files))

after = dict(after_item=[squish, ToTensor()], after_batch=[IntToFloatTensor()])

def from_datasets(root): return datasets_of(root).dataloaders(**after, **common)

def open_and_label(file): return PILImage.create(file), TensorCategory(CLASSES.index(Path(file).parent.name))

def from_tfmdlists(root):
    files = get_image_files(root)
    return TfmdLists(files, [open_and_label], splits=RandomSplitter(0.25, seed=0)(files)).dataloaders(**after, **common)

def weighted(root):
    ds = datasets_of(root)
    return ds.weighted_dataloaders(np.linspace(1, 3, len(ds.train)), **after, **common)

def partial_dl(root): return datasets_of(root).partial_dataloaders(partial_n=20, **after, **common)

def first_n(root):
    ds = datasets_of(root)
    tfms = dict(after_item=[squish, ToTensor()], after_batch=[IntToFloatTensor()])
    return DataLoaders(TfmdDL(ds.train, bs=8, shuffle=True, n=17, **tfms), TfmdDL(ds.valid, bs=8, **tfms))

class PILItems:
    "(PIL image, class) items"
    def __init__(self, files): self.files = list(files)
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        with Image.open(self.files[i]) as im: return im.convert('RGB'), CLASSES.index(self.files[i].parent.name)

def shrink(item):
    img, y = item
    if not isinstance(img, Image.Image): return item
    return torch.from_numpy(np.array(img.resize((SIDE, SIDE), Image.BILINEAR))).permute(2, 0, 1), y

def raw_pil(root):
    files = get_image_files(root).sorted()
    kwargs = dict(bs=8, after_item=PointsToo(), after_batch=to_float)
    return DataLoaders(DataLoader(PILItems(files[::2]), shuffle=True, **kwargs), DataLoader(PILItems(files[1::4]), **kwargs))

class PointsToo:
    "Shrink the picture; points pass as they are, for they are shares of it"
    def __call__(self, item): return shrink(item)

def raw_tensors(root): return coded_dls()

builders = dict(
    from_folder=from_folder, from_name_func=from_name_func, from_path_func=from_path_func, from_df=from_df, from_df_multi=from_df_multi,
    from_lists=from_lists, block_of_function=block_of_function, block_of_columns=block_of_columns, block_of_items=block_of_items,
    datasets=from_datasets, tfmdlists=from_tfmdlists, weighted=weighted, partial=partial_dl, first_n=first_n, raw_pil=raw_pil,
    raw_tensors=raw_tensors,
)
several = {'from_df_multi', 'block_of_columns'}
not_files = {'raw_pil', 'raw_tensors'}

def learner_on(name, root, seed=0, **kwargs):
    seed_all(seed)
    loss = dict(loss_func=BCEWithLogitsLossFlat(), metrics=accuracy_multi) if name in several else {}
    return make_learner(lambda: builders[name](root), quiet_cb(**(dict(select='all', share=0.4) | kwargs)), seed,
                        tiny_model(4 if name in several else 3), **loss)

def same(a, b):
    "Targets equal in value and type"
    return type(a) is type(b) and bool(torch.all(torch.as_tensor(a) == torch.as_tensor(b)))

def as_pixels(img): return np.asarray(img) if isinstance(img, Image.Image) else img.permute(1, 2, 0).numpy()


# -- every builder --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', builders)
def test_a_copy_stands_behind_the_originals_with_its_originals_label(shapes, name):
    learn = learner_on(name, shapes)
    dls, base, n = learn.dls, learn.dls.train.dataset, learn.dls.train.n
    train, vocab = dls.train, list(getattr(dls, 'vocab', []))
    learn.fit(1, 1e-3)
    ds, k = learn.dls.train_ds, len(learn.proxies)
    assert k == int(0.4*n) and len(ds) == learn.dls.train.n == n+k and type(learn.dls.train) is type(train)
    for i,row in enumerate(learn.proxies.itertuples()):
        src = int(row.id.split('-')[1])
        img, y = ds[n+i]
        x, true = base[src]
        assert same(y, true) and type(img) is type(x) and src < n
        assert np.array_equal(as_pixels(img), read_rgb(row.path)) and (as_pixels(img) != as_pixels(x)).any(2).mean() <= 0.11
        if name in not_files: assert row.original == src
        else: assert Path(row.original) == file_of(base, src, shapes)
        names = [list(vocab)[c] for c in np.flatnonzero(true)] if name in several else vocab[int(true)] if vocab else str(int(true))
        assert row.label == names
    assert list(getattr(learn.dls, 'vocab', [])) == vocab
    learn.fit(1, 1e-3)
    assert last_of(learn)['items'] == n and len(learn.proxies) == int(0.4*n)
    learn.remove_proxies()
    assert learn.dls is dls and dls.train is train and dls.train.dataset is base and (dls.train.n, len(dls.train_ds)) == (n, len(base))

def file_of(base, i, root):
    "The file of item `i`, by reading the user's own items"
    item = base.items.iloc[i] if isinstance(base.items, pd.DataFrame) else base.items[i]
    return root/(item if isinstance(item, (str, Path)) else item['name'] if isinstance(item, pd.Series) else item[0])

def drawn_from(learn, colours, epochs=1):
    "(index of the copy or None, label) of every item that `learn.dls.train` draws; copies are known by their one colour"
    out = []
    for _ in range(epochs):
        for x,y in learn.dls.train:
            for img,t in zip(x, y):
                flat = img.flatten(1)
                one_colour = bool((flat.amax(1) - flat.amin(1) < 1e-3).all())
                away = (colours - flat[:, 0]).abs().amax(1)
                out.append((int(away.argmin()) if one_colour and away.amin() < 1e-3 else None, t))
    return out

def painted(name, root, seed=0, **kwargs):
    "A learner whose copies are the mean colour of their original all over, and these colours"
    learn = learner_on(name, root, seed, fill='mean', area=1., **kwargs)
    learn.fit(1, 1e-3)
    colours = torch.stack([torch.from_numpy(read_rgb(p)[0, 0].copy()).float()/255 for p in learn.proxies['path']])
    apart = (colours[:, None] - colours[None]).abs().amax(-1) + torch.eye(len(colours))
    assert apart.min() > 3e-3, "two copies have the same colour: choose other images"
    return learn, colours

@pytest.mark.parametrize('name', [n for n in builders if n not in ('weighted', 'partial')])
def test_an_epoch_draws_each_copy_once_with_its_label(shapes, name):
    learn, colours = painted(name, shapes)
    learn.dls.train.drop_last = False
    base, k, n = learn.dls.train_ds.base, len(learn.proxies), len(learn.dls.train_ds)
    drawn = drawn_from(learn, colours)
    assert len(drawn) == n and sorted(c for c,_ in drawn if c is not None) == list(range(k))
    sources = [int(i.split('-')[1]) for i in learn.proxies['id']]
    for c,y in drawn:
        if c is not None: assert bool(torch.all(torch.as_tensor(base[sources[c]][1]) == y))

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('drop_last', [True, False])
def test_workers_and_drop_last(shapes, workers, drop_last):
    def build(): return block_of_items_with(shapes, workers, drop_last)
    learn = make_learner(build, quiet_cb(select='all', share=0.4, fill='mean', area=1.))
    learn.fit(1, 1e-3)
    colours = torch.stack([torch.from_numpy(read_rgb(p)[0, 0].copy()).float()/255 for p in learn.proxies['path']])
    n, k = len(learn.dls.train_ds), len(learn.proxies)
    assert (n, k) == (37, 10) and len(learn.dls.train) == (4 if drop_last else 5)
    drawn = drawn_from(learn, colours, 3 if drop_last else 1)
    seen = [c for c,_ in drawn if c is not None]
    assert len(drawn) == (3*32 if drop_last else 37) and set(seen) == set(range(k))
    if not drop_last: assert len(seen) == k
    labels = [learn.dls.vocab.o2i[v] for v in learn.proxies['label']]
    assert all(labels[c] == int(y) for c,y in drawn if c is not None)
    before = learn.dls.train.fake_l.num_workers
    learn.fit(1, 1e-3)
    assert before == learn.dls.train.fake_l.num_workers == workers and set(learn.proxies['cycle']) == {2}

def block_of_items_with(root, workers, drop_last):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=RandomSplitter(0.25, seed=0),
                      item_tfms=squish)
    return block.dataloaders(root, bs=8, num_workers=workers, drop_last=drop_last)

def test_workers_make_the_same_copies(shapes):
    made = []
    for workers in (0, 2):
        learn = make_learner(partial(block_of_items_with, shapes, 0, True), quiet_cb(fill='noise', path=f'run{workers}'))
        learn.dls.valid.fake_l.num_workers = workers
        learn.fit(1, 1e-3)
        made.append({o: Path(p).read_bytes() for o,p in zip(learn.proxies['original'], learn.proxies['path'])})
    assert made[0] == made[1] and len(made[0]) > 3

def test_weights_of_copies_are_their_originals(shapes):
    learn, colours = painted('weighted', shapes)
    given = np.linspace(1, 3, 27)
    sources = [int(i.split('-')[1]) for i in learn.proxies['id']]
    expected = np.concatenate([given, given[sources]])
    assert np.allclose(learn.dls.train.wgts, expected/expected.sum())
    np.random.seed(0)
    drawn = drawn_from(learn, colours, 40)
    share = np.mean([c is not None for c,_ in drawn])
    assert abs(share - expected[27:].sum()/expected.sum()) < 0.05
    labels = [learn.dls.vocab.o2i[v] for v in learn.proxies['label']]
    assert all(labels[c] == int(y) for c,y in drawn if c is not None) and {c for c,_ in drawn} == {None, *range(len(labels))}
    learn.remove_proxies()
    assert np.allclose(learn.dls.train.wgts, given/given.sum())

def test_weights_where_copies_replace(shapes):
    learn = learner_on('weighted', shapes, merge='replace')
    learn.fit(1, 1e-3)
    given, ds = np.linspace(1, 3, 27), learn.dls.train_ds
    expected = given[[ds.origin(i) for i in range(27)]]
    assert np.allclose(learn.dls.train.wgts, expected/expected.sum()) and len(ds) == 27

@pytest.mark.parametrize('merge', ['add', 'replace'])
def test_weights_of_dataloaders_that_hold_anothers_copies(shapes, merge):
    one = learner_on('weighted', shapes, merge=merge)
    one.fit(1, 1e-3)
    two = make_learner(one.dls, quiet_cb(select='all', share=0.2), 1)
    with pytest.warns(UserWarning, match='another learner'): two.fit(1, 1e-3)
    given, ds = np.linspace(1, 3, 27), two.dls.train_ds
    expected = given[[ds.origin(i) for i in range(len(ds))]]
    assert len(ds) == 32 and np.allclose(two.dls.train.wgts, expected/expected.sum())

def test_a_partial_loader_stays_partial(shapes):
    learn, colours = painted('partial', shapes)
    drawn = drawn_from(learn, colours, 12)
    assert len(learn.dls.train) == 2 and len(drawn) == 12*16 # 20 of 37, the last batch dropped
    assert {c for c,_ in drawn} == {None, *range(len(learn.proxies))}

def test_only_the_first_n_are_originals(shapes):
    learn = learner_on('first_n', shapes, select='all', share=1.)
    learn.fit(1, 1e-3)
    ids = sorted(int(i.split('-')[1]) for i in learn.proxies['id'])
    assert ids == list(range(17)) and len(learn.dls.train_ds) == learn.dls.train.n == 34

def test_replaced_originals_are_not_drawn(shapes):
    learn, colours = painted('from_folder', shapes, merge='replace')
    learn.dls.train.drop_last = False
    drawn = drawn_from(learn, colours)
    assert len(drawn) == 27 and sorted(c for c,_ in drawn if c is not None) == list(range(10))
    sources = [int(i.split('-')[1]) for i in learn.proxies['id']]
    base = learn.dls.train_ds.base
    stay = np.bincount([int(base[i][1]) for i in range(27) if i not in sources], minlength=3)
    assert np.bincount([int(y) for c,y in drawn if c is None], minlength=3).tolist() == stay.tolist()

def test_all_cycles_are_drawn(shapes):
    learn, _ = painted('from_folder', shapes, keep='all')
    learn.fit(1, 1e-3)
    colours = torch.stack([torch.from_numpy(read_rgb(p)[0, 0].copy()).float()/255 for p in learn.proxies['path']])
    learn.dls.train.drop_last = False
    drawn = [c for c,_ in drawn_from(learn, colours) if c is not None]
    assert len(drawn) == len(learn.proxies) == 20 and len(learn.dls.train_ds) == 47


# -- what else reads DataLoaders ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['from_folder', 'from_df', 'from_df_multi', 'from_lists', 'datasets', 'weighted'])
def test_show_batch_and_one_batch(shapes, name):
    learn = learner_on(name, shapes)
    learn.fit(1, 1e-3)
    learn.dls.show_batch(max_n=4)
    learn.dls.train.show_batch(max_n=2)
    assert len(plt.get_fignums()) == 2
    x, y = learn.dls.one_batch()
    assert x.shape == (8, 3, SIDE, SIDE) and len(y) == 8
    assert len(learn.dls.train.new_empty() if hasattr(learn.dls.train, 'new_empty') else learn.dls.new_empty().train) == 0

def test_tta_get_preds_and_test_dl(shapes):
    learn = learner_on('from_folder', shapes)
    dls = learn.dls
    learn.fit(1, 1e-3)
    preds, y = learn.get_preds(ds_idx=0)
    assert len(preds) == 27 and y.tolist() == [dls.vocab.o2i[Path(f).parent.name] for f in dls.train_ds.items] # Of originals
    assert torch.allclose(preds, logits_of(learn.model, dls.train_ds.items).softmax(1), atol=1e-4)
    everything = learn.dls.train.new(get_idxs=lambda: range(37), shuffle=False, drop_last=False) # Asked for copies too: originals first
    preds, y = learn.get_preds(dl=everything)
    assert y.tolist() == [dls.vocab.o2i[Path(f).parent.name] for f in [*dls.train_ds.items, *learn.proxies['original']]]
    assert torch.allclose(preds, logits_of(learn.model, [*dls.train_ds.items, *learn.proxies['path']]).softmax(1), atol=1e-4)
    assert len(learn.tta(ds_idx=1, n=1)[0]) == 9 and len(learn.tta(ds_idx=0, n=1)[0]) == 27
    assert len(learn.get_preds(dl=learn.dls.test_dl(dls.valid_ds.items))[0]) == 9
    learn.show_results(ds_idx=0)
    learn.show_results()

@pytest.mark.parametrize('ds_idx,n', [(1, 9), (0, 27)])
def test_interpretation(shapes, ds_idx, n):
    learn = learner_on('from_folder', shapes)
    learn.fit(1, 1e-3)
    interp = ClassificationInterpretation.from_learner(learn, ds_idx=ds_idx)
    assert interp.confusion_matrix().sum() == n and len(interp.top_losses()[0]) == n
    interp.plot_confusion_matrix()
    interp.plot_top_losses(n)

def test_slices_and_negative_numbers(shapes):
    learn = learner_on('from_folder', shapes)
    learn.fit(1, 1e-3)
    ds = learn.dls.train_ds
    assert isinstance(ds, ProxyDataset)
    last = ds[len(ds)-1]
    assert np.array_equal(np.array(ds[-1][0]), np.array(last[0])) and same(ds[-1][1], last[1])
    assert [int(y) for _,y in ds[[0, 30]]] == [int(ds[0][1]), int(ds[30][1])]
    with pytest.raises(IndexError): ds[len(ds)]

def test_batches_between_two_cycles_are_seeded(shapes):
    "The order of an epoch with copies follows from the seed alone"
    seen = []
    for _ in range(2):
        learn = learner_on('from_folder', shapes)
        learn.fit(1, 1e-3)
        seed_all(5)
        seen.append(torch.cat([y for _,y in learn.dls.train]).tolist())
    assert seen[0] == seen[1]


# -- several labels -------------------------------------------------------------------------------------------------------------------------------

def multi(shapes, **kwargs): return learner_on('from_df_multi', shapes, **(dict(select='wrong', share=1.) | kwargs))

def truth(dls, files):
    "Two labels an image: 'shape' and its class"
    return torch.tensor([[float(v in ('shape', Path(f).parent.name)) for v in dls.vocab] for f in files])

@pytest.mark.parametrize('thresh', [0.3, 0.5, 0.6])
def test_wrong_means_any_label_wrong(shapes, thresh):
    learn = multi(shapes, thresh=thresh)
    dls = learn.dls
    files = [shapes/n for n in dls.train_ds.items['name']]
    with torch.no_grad(): learn.model[1][2].weight.mul_(8) # Spread the probabilities
    learn.fit(1, 1e-3)
    p = logits_of(learn.model, files).sigmoid()
    wrong = ((p > thresh) != (truth(dls, files) > 0.5)).any(1)
    ids = {int(i.split('-')[1]) for i in learn.proxies['id']}
    assert ids == set(np.flatnonzero(wrong)) and last_of(learn)['wrong'] == int(wrong.sum()) > 0
    for row in learn.proxies.itertuples():
        i = int(row.id.split('-')[1])
        assert sorted(row.label) == sorted(['shape', Path(row.original).parent.name])
        assert row.predicted == [v for v,q in zip(dls.vocab, p[i]) if q > thresh]

def test_thresh_changes_who_is_wrong(shapes):
    counts = []
    for thresh in (0.05, 0.5, 0.95):
        learn = multi(shapes, thresh=thresh)
        with torch.no_grad():
            learn.model[1][2].weight.zero_()
            learn.model[1][2].bias.copy_(torch.tensor([1., -1., -1., 0.][:4]))
        learn.fit(1, 0.)
        counts.append(tuple(map(tuple, learn.proxies['predicted'])))
    assert len(set(counts)) == 3

def test_targets_of_several_labels(shapes):
    made = []
    for target in ('pred', 'true', 'contrast'):
        learn = multi(shapes, target=target, method='layercam')
        learn.fit(1, 1e-3)
        assert set(learn.proxies['target']) == {target} and len(learn.proxies)
        made.append([Path(p).read_bytes() for p in learn.proxies['path']])
    assert made[0] != made[1]

def test_several_labels_have_no_quota_per_class(shapes):
    learn = multi(shapes, per_class=True)
    with pytest.raises(ValueError, match='per_class=True needs one label'): learn.fit(1, 1e-3)

def test_ever_wrong_with_several_labels(shapes):
    learn = multi(shapes, select='ever_wrong')
    learn.fit(1, 0.)
    p = logits_of(learn.model, [shapes/n for n in learn.dls.train_ds.base.items['name']])
    assert len(p) == 27 and len(learn.proxies) and cb_of(learn).prepared.task.multilabel

def test_one_hot_targets_of_a_pipeline(shapes):
    files = get_image_files(shapes)
    def labels(f): return ['shape', f.parent.name]
    ds = Datasets(files, [[PILImage.create], [labels, MultiCategorize(), OneHotEncode()]], splits=RandomSplitter(0.25, seed=0)(files))
    learn = make_learner(ds.dataloaders(**after, **common), quiet_cb(select='all', share=0.4), model=tiny_model(4),
                         loss_func=BCEWithLogitsLossFlat(),
                         metrics=accuracy_multi)
    learn.fit(1, 1e-3)
    for i,o in enumerate(learn.proxies['original']): assert learn.dls.train_ds[27+i][1].tolist() == truth(ds, [o])[0].tolist()


# -- other images ---------------------------------------------------------------------------------------------------------------------------------

def test_grey_images(shapes, tmp_path):
    for f in get_image_files(shapes):
        (tmp_path/f.parent.name).mkdir(exist_ok=True)
        with Image.open(f) as im: im.convert('L').save(tmp_path/f.parent.name/f.name)
    learn = make_learner(lambda: shapes_dls(tmp_path), quiet_cb(select='all'))
    learn.fit(1, 1e-3)
    assert len(learn.proxies) == 27
    for o,p in zip(learn.proxies['original'], learn.proxies['path']): assert (read_rgb(o) != read_rgb(p)).any(2).mean() <= 0.11

def test_raw_tensors_go_on_as_tensors():
    train = Coded()
    learn = make_learner(lambda: coded_dls(train), quiet_cb(select='all', share=0.5, area=0.3))
    learn.fit(1, 1e-3)
    for i,src in enumerate(learn.proxies['original']):
        img, y = learn.dls.train_ds[24+i]
        x = train.items[src][0]
        hole = (img != x).any(0)
        assert img.dtype == torch.uint8 and img.shape == x.shape and type(y) is int and y == src % 3
        assert (img[:, hole] == 0).all() and 0.2 < hole.float().mean() <= 0.31

def test_the_model_may_be_without_a_vocabulary(shapes):
    learn = make_learner(lambda: raw_pil(shapes), quiet_cb(select='all'), model=nn.Sequential(*tiny_model()))
    learn.fit(1, 1e-3)
    assert set(learn.proxies['label']) == {'0', '1', '2'}


def test_copies_inside_of_an_epoch_of_a_given_length(shapes):
    "What is drawn from changes; the length of the epoch stays"
    from proxy_attention.dataloaders import epoch_of, inject
    dls = shapes_dls(shapes)
    base, n = dls.train_ds, dls.train.n
    with epoch_of(dls, 5):
        few = inject(dls, base, n, None, [], range(10))
        assert len(few.train) == len(dls.train) == 5 and len(few.train_ds) == 10
        for _ in range(3): assert set(few.train.get_idxs()) == set(range(10)) and len(few.train.get_idxs()) == 5*8
        assert sum(len(b[0]) for b in few.train) == 5*8
    assert len(dls.train) == 3 and len(few.train) == 5
