"""What can't work is told in one clear error, before anything is trained or written."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.load import DataLoader
from fastai.data.transforms import Categorize, FuncSplitter, IntToFloatTensor, RandomSplitter, ToTensor, get_image_files, parent_label
from fastai.losses import CrossEntropyLossFlat, MSELossFlat
from fastai.vision.core import PILImage, PILMask
from fastai.vision.data import ImageBlock, ImageDataLoaders, MaskBlock
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader as TorchLoader

from kit import (CLASSES, SIDE, Coded, Squish, coded_dls, files_in, hooks_of, label_of, make_learner, quiet_cb, same_weights, shapes_dls,
                 tiny_model, to_float, weights)
from proxy_attention import gallery  # noqa: F401  (patches Learner)
from proxy_attention.callback import ProxyAttentionCB
from proxy_attention.erase import fills
from proxy_attention.targets import placements, targets
from proxy_attention.policy import presets
from proxy_attention.saliency import saliency_methods
from proxy_attention.select import selectors
from proxy_attention.store import ProxyStore, StoreError

squish = Squish()


# -- arguments ------------------------------------------------------------------------------------------------------------------------------------

choices = dict(method=saliency_methods, target=targets, select=selectors, fill=fills, place=placements, merge=('add', 'replace'), keep=('latest', 'all'),
               scout_select=[s for s in selectors if s != 'ever_wrong'], scout_merge=('add', 'replace'), format=('png', 'jpg'))
nearly = dict(method='gradcma', target='preds', select='wrongs', fill='blak', place='salien', merge='ad', keep='latst', format='pngs',
              scout_select='al', scout_merge='replac')

@pytest.mark.parametrize('name', choices)
@pytest.mark.parametrize('value', ['nonsense', None, 3, ['black']], ids=str)
def test_unknown_choices(name, value):
    if (name, value) == ('select', None): return # allowed: no copies after fits
    with pytest.raises(ValueError) as e: ProxyAttentionCB(**{name: value})
    said = str(e.value)
    assert f'{name}={value!r}' in said and all(repr(c) in said for c in choices[name]) and files_in() == set()

@pytest.mark.parametrize('name', nearly)
def test_near_misses_are_corrected(name):
    with pytest.raises(ValueError, match='Did you mean') as e: ProxyAttentionCB(**{name: nearly[name]})
    meant = re.search(r"Did you mean '(.+)'\?", str(e.value))[1]
    assert meant in choices[name] and meant[:2] == nearly[name][:2]

@pytest.mark.parametrize('name', ['proposl', 'nonsense', None])
def test_unknown_presets(name):
    with pytest.raises(ValueError) as e: ProxyAttentionCB.preset(name)
    assert f'preset={name!r}' in str(e.value) and all(repr(p) in str(e.value) for p in presets)

numbers = [
    (dict(share=0), ValueError, ('share=0', '0', '1')), (dict(share=1.01), ValueError, ('share=1.01', '1')),
    (dict(share=-1), ValueError, ('share=-1',)),
    (dict(fil='black'), TypeError, ("argument='fil'", "'fill'")), (dict(verbos=False), TypeError, ("argument='verbos'", "Did you mean 'verbose'")),
    (dict(share='0.3'), TypeError, ("share='0.3'", 'number')), (dict(share=True), TypeError, ('share=True', 'number')),
    (dict(share=float('nan')), ValueError, ('share=nan',)),
    (dict(area=0), ValueError, ('area=0', '1')), (dict(area=1.5), ValueError, ('area=1.5', '1')),
    (dict(area='big'), TypeError, ("area='big'", 'number')),
    (dict(area=float('nan')), ValueError, ('area=nan',)),
    (dict(threshold=1), ValueError, ('threshold=1', "'mean+2std'")), (dict(threshold=-0.1), ValueError, ('threshold=-0.1',)),
    (dict(threshold=2), ValueError, ('threshold=2',)), (dict(threshold='mean'), ValueError, ("threshold='mean'", "'mean+2std'")),
    (dict(threshold=[0.5]), (ValueError, TypeError), ('threshold=[0.5]', "'mean+2std'")),
    (dict(threshold=float('nan')), ValueError, ('threshold=nan',)),
    (dict(area=0.1, threshold=0.6), ValueError, ('area=0.1', 'threshold=0.6', 'one')),
    (dict(area=0.1, threshold='mean+2std'), ValueError, ('area=0.1', "threshold='mean+2std'", 'one')),
    (dict(thresh=1.1), ValueError, ('thresh=1.1', '1')), (dict(thresh='half'), TypeError, ("thresh='half'", 'number')),
    (dict(repeat=0), ValueError, ('repeat=0', '1 to 100')), (dict(repeat=1.5), ValueError, ('repeat=1.5', 'whole')),
    (dict(per_class='yes'), TypeError, ("per_class='yes'", 'True', 'False')), (dict(per_class=1), TypeError, ('per_class=1', 'True')),
    (dict(verbose='no'), TypeError, ("verbose='no'", 'True', 'False')),
    (dict(max_gb=0), ValueError, ('max_gb=0',)), (dict(max_gb='10GB'), TypeError, ("max_gb='10GB'", 'number')),
    (dict(seed=-1), ValueError, ('seed=-1', '0')), (dict(seed=1.5), ValueError, ('seed=1.5', 'whole')),
    (dict(seed='x'), TypeError, ("seed='x'", 'whole')),
    (dict(path=3), TypeError, ('path=3', 'folder')), (dict(reshape='grid'), TypeError, ("reshape='grid'", 'function')),
]

@pytest.mark.parametrize('kwargs,error,words', numbers, ids=lambda v: str(v) if isinstance(v, dict) else '')
def test_numbers_and_types(kwargs, error, words):
    with pytest.raises(error) as e: ProxyAttentionCB(**kwargs)
    for w in words: assert w in str(e.value), f"{w!r} is not in: {e.value}"

@pytest.mark.parametrize('kwargs', [dict(share=1), dict(share=1e-6), dict(area=1), dict(threshold=0), dict(threshold=0.999),
                                    dict(threshold='mean+2std'),
                                    dict(thresh=0), dict(thresh=1), dict(seed=np.int64(3)), dict(share=np.float32(0.5)),
                                    dict(max_gb=0.001)], ids=str)
def test_what_is_just_allowed(kwargs): assert ProxyAttentionCB(**kwargs).policy is not None

def test_unknown_argument():
    with pytest.raises(TypeError, match='metod'): ProxyAttentionCB(metod='gradcam')

@pytest.mark.parametrize('max_n,error', [(0, ValueError), (1.5, ValueError), ('9', TypeError)])
def test_show_proxies(learner, max_n, error):
    with pytest.raises(error, match='max_n='): learner(quiet_cb()).show_proxies(max_n)

def test_show_proxies_without_copies_or_callback(learner, capsys):
    assert learner(quiet_cb()).show_proxies() is None and 'no copies' in capsys.readouterr().out
    with pytest.raises(ValueError, match='no ProxyAttentionCB.*cbs=ProxyAttentionCB'): learner().show_proxies()

def test_without_the_callback_there_are_no_copies(learner):
    learn = learner()
    dls = learn.dls
    assert not len(learn.proxies) and learn.remove_proxies().dls is dls
    with pytest.raises(TypeError, match="purge='yes'"): learn.remove_proxies(purge='yes')


# -- learners -------------------------------------------------------------------------------------------------------------------------------------

def refused(learn, error, *words, fit=lambda learn: learn.fit(1, 1e-3)):
    "The fit raises one error with these words; nothing has been trained or written; the message"
    before, here, dls, loaders = weights(learn.model), files_in(), learn.dls, list(learn.dls.loaders)
    with pytest.raises(error) as e: fit(learn)
    said = str(e.value)
    for w in words: assert w in said, f"{w!r} is not in: {said}"
    assert said.count('Exception occured') == 1, "raised within another callback's error"
    assert same_weights(weights(learn.model), before) and not learn.recorder.values, "something was trained"
    assert files_in() == here, "something was written"
    assert learn.dls is dls and all(a is b for a,b in zip(dls.loaders, loaders)) and hooks_of(learn.model) == 0
    return said

layers = [
    ('layer4', ValueError, ("layer='layer4'", 'near names', "'0'")), ('0.6', ValueError, ("layer='0.6'", "'0.5'")),
    ('', ValueError, ("layer=''",)),
    ('1.2', ValueError, ("layer='1.2'", 'no spatial output', '(B,C,H,W)')), ('1.1', ValueError, ("layer='1.1'", 'no spatial output')),
    (4, TypeError, ('layer=4', 'dotted name')), (nn.Conv2d(3, 3, 1), ValueError, ('layer=Conv2d', 'not a module of this')),
]

@pytest.mark.parametrize('layer,error,words', layers, ids=lambda v: str(v) if not isinstance(v, (tuple, type)) else '')
def test_layers(learner, layer, error, words): refused(learner(quiet_cb(layer=layer)), error, *words)

def test_a_reshape_that_makes_no_map(learner):
    refused(learner(quiet_cb(layer='0.5', reshape=lambda o: o.flatten(1))), ValueError, "layer='0.5'", 'no spatial output', 'reshape=')

def test_a_model_without_any_map(learner):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*SIDE*SIDE, 8), nn.ReLU(), nn.Linear(8, 3))
    refused(learner(quiet_cb(), model=model), ValueError, 'layer=None', "layer='…'", 'reshape=')

def test_cam_needs_a_linear_head(learner):
    body, head = tiny_model()
    head = nn.Sequential(*head[:2], nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    refused(learner(quiet_cb(method='cam'), model=nn.Sequential(body, head)), ValueError, "method='cam'", "method='gradcam'")

def test_a_regression_learner(shapes):
    block = DataBlock(blocks=(ImageBlock, RegressionBlock), get_items=get_image_files, get_y=lambda f: float(label_of(f)), item_tfms=squish,
                      splitter=RandomSplitter(0.25, seed=0))
    learn = make_learner(lambda: block.dataloaders(shapes, bs=8, num_workers=0), quiet_cb(), model=tiny_model(1), loss_func=MSELossFlat(),
                         metrics=None)
    refused(learn, TypeError, 'ProxyAttentionCB needs a classifier', 'regression')

def test_a_regression_learner_with_several_numbers(shapes):
    block = DataBlock(blocks=(ImageBlock, RegressionBlock(3)), get_items=get_image_files, get_y=lambda f: [0.1, 0.2, 0.3], item_tfms=squish,
                      splitter=RandomSplitter(0.25, seed=0))
    learn = make_learner(lambda: block.dataloaders(shapes, bs=8, num_workers=0), quiet_cb(), loss_func=MSELossFlat(), metrics=None)
    refused(learn, TypeError, 'ProxyAttentionCB needs a classifier', 'regression')

def test_a_segmentation_learner(shapes):
    def mask(f): return PILMask.create(np.zeros((30, 30), np.uint8))
    block = DataBlock(blocks=(ImageBlock, MaskBlock(codes=['a', 'b'])), get_items=get_image_files, get_y=mask, item_tfms=squish,
                      splitter=RandomSplitter(0.25, seed=0))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    learn = make_learner(lambda: block.dataloaders(shapes, bs=8, num_workers=0), quiet_cb(), model=model,
                         loss_func=CrossEntropyLossFlat(axis=1),
                         metrics=None)
    refused(learn, TypeError, 'ProxyAttentionCB needs a classifier', 'segmentation')

def test_two_callbacks(learner): refused(learner([quiet_cb(), quiet_cb()]), ValueError, 'one ProxyAttentionCB')

def test_items_of_three_parts(shapes):
    block = DataBlock(blocks=(ImageBlock, ImageBlock, CategoryBlock), n_inp=2, get_items=get_image_files, get_y=parent_label,
                      item_tfms=squish,
                      get_x=[lambda f: f, lambda f: f], splitter=RandomSplitter(0.25, seed=0))
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.one = tiny_model()
        def forward(self, a, b): return self.one(a) + self.one(b)
    learn = make_learner(lambda: block.dataloaders(shapes, bs=8, num_workers=0), quiet_cb(), model=Two())
    refused(learn, TypeError, 'one image and one target', '3 parts')


# -- data -----------------------------------------------------------------------------------------------------------------------------------------

tfms = dict(bs=8, after_item=[squish, ToTensor()], after_batch=[IntToFloatTensor()])

def datasets(shapes, valid):
    "Datasets whose validation items are those that `valid` says so of"
    files = list(get_image_files(shapes))
    return Datasets(files, [[PILImage.create], [parent_label, Categorize(vocab=list(CLASSES))]], splits=FuncSplitter(valid)(files))

def test_an_empty_training_set(shapes):
    ds = datasets(shapes, lambda f: f.stem.endswith('3'))
    learn = make_learner(lambda: DataLoaders(TfmdDL(ds.train.new_empty(), **tfms), TfmdDL(ds.valid, **tfms)), quiet_cb())
    refused(learn, ValueError, 'dls.train holds no items')

def test_one_class_in_training(shapes):
    ds = datasets(shapes, lambda f: f.parent.name != 'red')
    refused(make_learner(lambda: ds.dataloaders(num_workers=0, **tfms), quiet_cb()), ValueError,
            'all 12 training items have the same label', 'red')

def test_one_class_at_all(shapes):
    dls = ImageDataLoaders.from_lists(shapes, list(get_image_files(shapes)), ['thing']*36, valid_pct=0.25, seed=0, item_tfms=squish, bs=8,
                                      num_workers=0)
    refused(make_learner(dls, quiet_cb(), model=tiny_model(1)), ValueError, 'at least two classes')
    refused(make_learner(dls, quiet_cb()), ValueError, 'same label', 'thing')

def test_one_class_of_raw_items():
    train = Coded()
    train.items = [(x, 1) for x,_ in train.items]
    refused(make_learner(lambda: coded_dls(train), quiet_cb()), ValueError, 'same label', '1')

@pytest.mark.parametrize('how', ['none held out', 'one loader'])
def test_no_validation_set(shapes, how):
    ds = datasets(shapes, lambda f: False)
    dls = ds.dataloaders(num_workers=0, **tfms) if how == 'none held out' else DataLoaders(TfmdDL(ds.train, **tfms))
    learn = make_learner(dls, quiet_cb())
    refused(learn, ValueError, 'no validation set', 'valid_pct=')

def test_a_torch_dataloader(shapes):
    items = Coded()
    dls = DataLoaders(TorchLoader(items, batch_size=8), TorchLoader(Coded(9), batch_size=8))
    refused(make_learner(dls, quiet_cb()), TypeError, 'dls.train is a torch.utils.data', "fastai's own DataLoader")

def test_a_torch_dataloader_for_validation():
    dls = DataLoaders(DataLoader(Coded(), bs=8, after_batch=to_float), TorchLoader(Coded(9), batch_size=8))
    refused(make_learner(dls, quiet_cb()), (TypeError, ValueError), 'valid')

def test_an_iterable_dataset():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(Coded(16).items)
    dls = DataLoaders(DataLoader(Stream(), bs=8, after_batch=to_float), DataLoader(Coded(9), bs=8, after_batch=to_float))
    refused(make_learner(dls, quiet_cb()), TypeError, 'iterable dataset')

@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n'], ids=['empty', 'text', 'header only'])
def test_no_image_can_be_read(own_shapes, content):
    learn = make_learner(lambda: shapes_dls(own_shapes), quiet_cb())
    for f in get_image_files(own_shapes): f.write_bytes(content)
    refused(learn, OSError, 'no training item can be read')

def test_images_that_are_floats_already():
    class Floats(Coded):
        def __getitem__(self, i): return self.items[i][0].float()/255, self.items[i][1]
    dls = DataLoaders(DataLoader(Floats(), bs=8), DataLoader(Floats(9), bs=8))
    refused(make_learner(dls, quiet_cb()), TypeError, 'PIL images or uint8 tensors', 'torch.float32')

def test_images_of_a_strange_mode(shapes):
    class Palette:
        def __len__(self): return 12
        def __getitem__(self, i): return Image.new('P', (SIDE, SIDE)), i % 3
    def to_tensor(item):
        return (torch.from_numpy(np.array(item[0].convert('RGB'))).permute(2, 0, 1), item[1]) if isinstance(item[0], Image.Image) else item
    kwargs = dict(bs=4, after_item=to_tensor, after_batch=to_float)
    dls = DataLoaders(DataLoader(Palette(), **kwargs), DataLoader(Palette(), **kwargs))
    refused(make_learner(dls, quiet_cb()), TypeError, 'mode P', 'RGB')


# -- folders --------------------------------------------------------------------------------------------------------------------------------------

def on(learner, root, **kwargs): return learner(quiet_cb(**kwargs), root=root)

@pytest.mark.parametrize('where', ['.', 'red', 'red/copies', 'copies', 'deep/down'])
def test_a_path_inside_of_the_data_set(learner, own_shapes, where):
    before = files_in(own_shapes)
    said = refused(on(learner, own_shapes, path=own_shapes/where), ValueError, "path='", "lies inside the data set's folder", 'outside')
    assert str(own_shapes) in said and files_in(own_shapes) == before

def test_a_path_inside_of_the_data_set_by_another_name(learner, own_shapes, tmp_path):
    (tmp_path/'link').symlink_to(own_shapes/'red')
    refused(on(learner, own_shapes, path=tmp_path/'link'/'copies'), ValueError, "lies inside the data set's folder")
    refused(on(learner, own_shapes, path=own_shapes/'red'/'..'/'copies'), ValueError, "lies inside the data set's folder")

def test_a_dot_folder_beside_the_images_is_allowed(learner, own_shapes):
    learn = on(learner, own_shapes, path=own_shapes/'.copies'/'run')
    learn.fit(1, 1e-3)
    assert len(learn.proxies) and len(get_image_files(own_shapes)) == 36 # They aren't read back as data

def test_the_default_is_not_read_back_as_data(learner, own_shapes, monkeypatch):
    monkeypatch.chdir(own_shapes) # Working among the images themselves
    learn = on(learner, own_shapes)
    learn.fit(1, 1e-3)
    assert len(learn.proxies) and (own_shapes/'.proxies').is_dir() and len(get_image_files(own_shapes)) == 36

def test_a_path_under_a_file(learner, shapes):
    Path('file').write_text('')
    refused(on(learner, shapes, path='file/copies'), StoreError, "path='file/copies'", "can't be written to")

def test_a_path_that_is_a_file(learner, shapes):
    Path('file').write_text('mine')
    refused(on(learner, shapes, path='file'), StoreError, "path='file'", "can't be written to")
    assert Path('file').read_text() == 'mine'

@pytest.mark.skipif(not Path('/proc/self').exists(), reason="needs /proc, which nobody can write to")
def test_a_path_that_can_not_be_written_to(learner, shapes):
    refused(on(learner, shapes, path='/proc/self/copies'), StoreError, "path='/proc/self/copies'", "can't be written to")

def test_the_working_directory_can_not_be_written_to(learner, shapes):
    Path('.proxies').write_text('a file of that name')
    refused(on(learner, shapes), StoreError, '.proxies', 'path=')

def test_a_damaged_manifest(learner, shapes):
    ProxyStore('run').open().close()
    Path('run/manifest.jsonl').write_text('no json\n{"id": "1-1"}\n')
    before = weights((learn := on(learner, shapes, path='run')).model)
    with pytest.raises(StoreError, match='line 1 .*damaged.*another path='): learn.fit(1, 1e-3)
    assert same_weights(weights(learn.model), before) and Path('run/manifest.jsonl').read_text().startswith('no json')

def test_labels_that_look_like_paths(learner, own_shapes):
    files = list(get_image_files(own_shapes))
    names = dict(zip(CLASSES, ('../x', '/tmp/y', 'a\n"b')))
    dls = ImageDataLoaders.from_lists(own_shapes, files, [names[f.parent.name] for f in files], valid_pct=0.25, seed=0, item_tfms=squish,
                                      bs=8,
                                      num_workers=0)
    learn = make_learner(dls, quiet_cb(select='all', path='run'))
    learn.fit(1, 1e-3)
    assert set(learn.proxies['label']) == set(names.values())
    assert {Path(p).resolve().parent for p in learn.proxies['path']} == {Path('run').resolve()}
    assert len(Path('run/manifest.jsonl').read_text().splitlines()) == len(learn.proxies) == 27
    assert not any('x' in p or 'y' in p for p in files_in() if p.endswith('.png') and '/' in p.removeprefix('run/'))

def test_a_path_beside_the_class_folders_one_works_in(own_shapes, monkeypatch):
    monkeypatch.chdir(own_shapes)
    learn = make_learner(lambda: shapes_dls(own_shapes), quiet_cb(path='copies'))
    with pytest.raises(ValueError, match="path='copies' lies inside the data set"): learn.fit(1, 1e-3)
    assert not (own_shapes/'copies').exists()
