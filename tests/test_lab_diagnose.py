"""`proxy-attention diagnose`: stripes whose direction tells the class, and a square whose colour does so more easily."""
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock, TransformBlock
from fastai.data.transforms import ColReader, GrandparentSplitter, Normalize, ToTensor, get_image_files, parent_label
from fastai.layers import ConvLayer
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage, imagenet_stats
from fastai.vision.data import ImageBlock, ImageDataLoaders
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from kit import quiet, same_weights, seed_all, weights
from proxy_attention import scout
from proxy_attention.lab.cli import app
from proxy_attention.lab.models.exported import class_folders, exported_classes, load_exported, use_images
from proxy_attention.lab.runs.job import finished_learner
from proxy_attention.lab.runs.runner import run_experiment
from proxy_attention.shortcut_report import make_report

COLOURS = {'blue': (40, 40, 220), 'red': (220, 40, 40)}

def make_images(root):
    rng = np.random.default_rng(0)
    for split,n in (('train', 80), ('valid', 80)):
        for k in range(n):
            name = list(COLOURS)[k % 2]
            img = rng.integers(0, 90, (32, 32, 3))
            rows = img if name == 'red' else img.transpose(1, 0, 2)
            for at in range(rng.integers(0, 6), 32, 6): rows[at:at+2] += 15
            y,x = rng.integers(0, 24, 2)
            img[y:y+8, x:x+8] = COLOURS[name]
            (root/split/name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(img.astype(np.uint8)).save(root/split/name/f'{k}.png')
    return root

def small_net():
    body = nn.Sequential(ConvLayer(3, 8), ConvLayer(8, 16, stride=2))
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)))

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Folder of the images, a learner that was trained on them, and its file"
    folder = tmp_path_factory.mktemp('diagnose')
    images = make_images(folder/'images')
    seed_all()
    dls = ImageDataLoaders.from_folder(images, train='train', valid='valid', bs=20, num_workers=0, seed=0,
                                       batch_tfms=[Normalize.from_stats(*imagenet_stats)])
    learn = Learner(dls, small_net(), path=folder, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 1e-2)
    learn.export('export.pkl')
    return SimpleNamespace(folder=folder, images=images, learn=learn, file=folder/'export.pkl')

def diagnose(*args): return CliRunner().invoke(app, ['diagnose', *map(str, args)])

def found(*args):
    "What the command says as JSON, with its exit code"
    got = diagnose(*args, '--json')
    assert got.exit_code in (0, 1, 2) and not isinstance(got.exception, ValueError), (got.output, got.exception)
    return json.loads(got.stdout) | dict(code=got.exit_code)

def wrong(*args):
    "The line that says what is wrong"
    got = diagnose(*args)
    *_,line = got.output.strip().splitlines()
    assert got.exit_code == 2 and line.startswith('proxy-attention: ') and 'Traceback' not in got.output, got.output
    return line


# -- a learner --------------------------------------------------------------------------------------------------------

def test_a_planted_shortcut_is_named(made, tmp_path):
    page = tmp_path/'page.html'
    got = diagnose(made.file, '--data', made.images, '--scout', 16, '--out', page)
    assert got.exit_code == 1, (got.output, got.exception)
    assert f'looking at 80 validation images in {made.images}' in got.output
    assert 'Shortcut found' in got.output and 'patches look alike' in got.output and f'page   {page}' in got.output
    text = page.read_text()
    assert 'A shortcut was found' in text and 'called a shortcut' in text and 'src="http' not in text

@pytest.fixture(scope='module')
def needed(made): return found(made.file, '--data', made.images/'valid', '--out', made.folder/'needed.html')

def test_the_answer_is_that_of_the_learner_itself(made, needed):
    learn = load_exported(made.file)
    use_images(learn, class_folders(made.images/'valid', COLOURS)['valid'])
    report = make_report(learn)
    assert needed['answer'] == str(report) and needed['curve'] == report.network.curve.to_dict('records')
    assert needed['patches'] == report.patches.to_dict('records')
    with made.learn.no_bar(): assert needed['accuracy'] == pytest.approx(made.learn.validate()[1])

def test_without_a_second_network_it_stays_open(needed):
    assert (needed['verdict'], needed['shortcut'], needed['code']) == ('needed', False, 2)
    assert needed['accuracy'] > 0.95 > 0.7 > needed['accuracy_erased_there'] and needed['accuracy_without'] is None
    assert needed['images'] == 80 and needed['doubts'] == [] and needed['duplicates'] == []

def test_the_page_lies_here(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert found(made.file, '--data', made.images/'valid', '--max-images', 20)['page'] == 'diagnosis.html'
    assert [f.name for f in tmp_path.iterdir()] == ['diagnosis.html']
    assert diagnose(made.file, '--data', made.images/'valid', '--max-images', 20).exit_code == 2 # Ours is written anew
    (tmp_path/'diagnosis.html').write_text('mine')
    assert 'diagnosis.html is there already and not a page of ours' in wrong(made.file, '--data', made.images)
    assert (tmp_path/'diagnosis.html').read_text() == 'mine'

def test_where_nothing_is_lost_there_is_no_shortcut(made, needed):
    got = found(made.file, '--data', made.images/'valid', '--area', 0.002)
    assert (got['verdict'], got['code'], got['area']) == ('spread', 0, 0.002) and needed['area'] == 0.1

def test_which_images(made):
    some, other = (found(made.file, '--data', made.images/'valid', '--max-images', 30, '--seed', s) for s in (0, 1))
    assert some['images'] == other['images'] == 30 and some['by_class'] != other['by_class']
    said = diagnose(made.file, '--data', made.images/'valid', '--max-images', 30).output
    assert 'looking at 30 of 80 images in' in said

def test_training_images(made, tmp_path):
    "They are for duplicates and for the second network"
    shutil.copytree(made.images/'train', tmp_path/'train')
    shutil.copy(made.images/'valid'/'red'/'1.png', tmp_path/'train'/'red'/'twin.png')
    got = found(made.file, '--data', made.images/'valid', '--train', tmp_path/'train', '--scout', '2 steps')
    assert [[f[-8:] for f in pair] for pair in got['duplicates']] == [['ed/1.png', 'twin.png']]
    assert got['accuracy_without'] is not None and got['verdict'] != 'shortcut'

def test_a_test_set_does_as_well(made, tmp_path):
    shutil.copytree(made.images/'train', tmp_path/'train')
    shutil.copytree(made.images/'valid', tmp_path/'test')
    assert [len(v.files) for v in class_folders(tmp_path, COLOURS).values()] == [80, 80]

def test_progress_in_a_terminal(made, monkeypatch):
    monkeypatch.setattr(scout, 'sys', SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setattr('fastprogress.fastprogress.printing', lambda: True)
    got = diagnose(made.file, '--data', made.images, '--max-images', 40, '--scout', '2 steps')
    assert got.exit_code in (0, 2) and 'erasing' in got.output and 'network without it' in got.output, got.exception

def content(dl): return np.array(sorted((float(x.float().sum()), int(y)) for xs,ys in dl for x,y in zip(xs, ys)))

# -- the file ---------------------------------------------------------------------------------------------------------

def test_the_learner_is_as_it_was_trained(made):
    got = load_exported(made.file)
    assert same_weights(weights(made.learn.model), weights(got.model))
    use_images(got, **class_folders(made.images, exported_classes(got)))
    assert content(got.dls.valid) == pytest.approx(content(made.learn.dls.valid), rel=1e-4)
    assert got.dls.train.shuffle and len(got.dls.train_ds) == 80

@pytest.mark.filterwarnings('ignore')
def test_half_precision_is_for_gpus(made):
    made.learn.to_fp16()
    made.learn.export('half.pkl')
    made.learn.to_fp32()
    assert not hasattr(load_exported(made.folder/'half.pkl'), 'mixed_precision')

def table(root):
    names = [f'{f.parent.parent.name}/{f.parent.name}/{f.name}' for f in get_image_files(root)]
    return pd.DataFrame(dict(file=names, what=[n.split('/')[1] for n in names], late=[n.startswith('valid') for n in names]))

def short_names(root): return [f.relative_to(root).as_posix() for f in get_image_files(root)]

@pytest.mark.parametrize('how', ['files', 'table', 'names', 'augmented'])
def test_images_are_prepared_as_in_training(made, how, tmp_path):
    "Whatever the learner read them from"
    root, blocks, split = made.images, (ImageBlock, CategoryBlock), GrandparentSplitter(valid_name='valid')
    if how == 'table':
        dls = ImageDataLoaders.from_df(table(root), root, valid_col='late', fn_col='file', label_col='what', bs=9, num_workers=0)
    elif how == 'names':
        block = DataBlock(blocks, get_items=short_names, get_x=lambda n: root/n, get_y=lambda n: n.split('/')[1], splitter=lambda ns: split(list(map(type(root), ns))))
        dls = block.dataloaders(root, bs=9, num_workers=0)
    else:
        more = dict(item_tfms=Resize(28), batch_tfms=aug_transforms()) if how == 'augmented' else {}
        block = DataBlock(blocks, get_items=get_image_files, get_y=parent_label, splitter=split, **more)
        dls = block.dataloaders(root, bs=9, num_workers=0)
    Learner(dls, small_net(), path=tmp_path).export('export.pkl')
    got = load_exported(tmp_path/'export.pkl')
    use_images(got, **class_folders(root, exported_classes(got)))
    expected = dls.test_dl(dls.valid_ds.items if how != 'table' else table(root)[table(root).late], with_labels=True)
    assert content(got.dls.valid) == pytest.approx(content(expected), rel=1e-4)
    xs,_ = got.dls.train.one_batch()
    assert xs.shape == (9, 3, *[28 if how == 'augmented' else 32]*2)

def test_few_training_images_are_one_batch(made, tmp_path):
    for name in COLOURS:
        for k in range(2):
            (tmp_path/name).mkdir(exist_ok=True)
            shutil.copy(made.images/'train'/name/f'{2*k + (name == "red")}.png', tmp_path/name)
    got = load_exported(made.file)
    few = class_folders(tmp_path, COLOURS)['valid']
    use_images(got, few, few)
    assert len(got.dls.train) == 1

# -- what is wrong ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('args, words', [
    (['nowhere.pkl', '--data', 'images'], 'nowhere.pkl is not there; give a learner'),
    (['export.pkl'], 'give some with --data FOLDER'),
    (['export.pkl', '--data', 'nowhere'], '--data nowhere is not there; give the folder'),
    (['export.pkl', '--data', 'export.pkl'], '--data export.pkl is a file'),
    (['export.pkl', '--data', 'empty'], '--data empty: there are no images'),
    (['export.pkl', '--data', 'images', '--train', 'empty'], '--train empty: there are no images'),
    (['export.pkl', '--data', 'images/valid/red'], '40 of its 40 images lie in the folder itself'),
    (['export.pkl', '--data', 'strange'], "doesn't know the classes cat, dog; it knows blue, red."),
    (['export.pkl', '--data', 'one'], 'all 40 images are of class red'),
    (['export.pkl', '--data', 'images/valid', '--scout', '3'], 'give them with --train FOLDER'),
    (['export.pkl', '--data', 'images', '--scout', '10%'], 'give epochs, or'),
    (['export.pkl', '--data', 'images', '--scout', 'x'], "scout='x'"),
    (['export.pkl', '--data', 'images', '--scout', 'nan'], 'scout=nan'),
    (['export.pkl', '--data', 'images', '--area', '0'], 'area=0'),
    (['export.pkl', '--data', 'images', '--max-images', '0'], 'max_images=0'),
    (['export.pkl', '--data', 'images', '--seed', '-1'], 'seed=-1'),
    (['export.pkl', '--data', 'images', '--out', 'images'], '--out images is a folder'),
    (['text.pkl', '--data', 'images'], "'text.pkl' can't be read as an exported learner"),
    (['weights.pth', '--data', 'images'], "'weights.pth' holds no learner"),
    (['images'], "'images' is not the folder of a run"),
    (['images', '--train', 'images'], '--train is for a learner')])
def test_errors(made, monkeypatch, args, words):
    monkeypatch.chdir(made.folder)
    (made.folder/'empty').mkdir(exist_ok=True)
    (made.folder/'text.pkl').write_text('hello')
    torch.save(made.learn.model.state_dict(), 'weights.pth')
    for to,name in (('strange/cat', 'red'), ('strange/dog', 'red'), ('strange/red', 'red'), ('one/red', 'red')):
        shutil.copytree(made.images/'valid'/name, to, dirs_exist_ok=True)
    assert words in wrong(*args)
    assert not (made.folder/'diagnosis.html').exists()

def test_many_unknown_classes_are_cut(made, tmp_path):
    for k in range(40):
        (tmp_path/f'c{k:02}').mkdir()
        shutil.copy(made.images/'valid'/'red'/'1.png', tmp_path/f'c{k:02}')
    assert 'c10, c11 and 28 more; it knows' in wrong(made.file, '--data', tmp_path)

@pytest.mark.parametrize('block, label, n_out', [(MultiCategoryBlock, lambda f: [f.parent.name], 2), (RegressionBlock, lambda f: 0.5, 1)])
def test_other_tasks(made, tmp_path, block, label, n_out):
    block = DataBlock((ImageBlock, block), get_items=get_image_files, get_y=label, splitter=GrandparentSplitter(valid_name='valid'))
    Learner(block.dataloaders(made.images, num_workers=0), small_net(), path=tmp_path, loss_func=nn.MSELoss()).export('export.pkl')
    assert 'no classifier that gives each image one label' in wrong(tmp_path/'export.pkl', '--data', made.images)

class TwoAnswers(nn.Linear):
    def forward(self, x): return x.mean((2, 3)), x

def test_a_network_with_two_answers(made, tmp_path):
    Learner(made.learn.dls, TwoAnswers(2, 2), path=tmp_path).export('export.pkl')
    assert 'needs a classifier with outputs (batch, classes), got tuple' in wrong(tmp_path/'export.pkl', '--data', made.images)

def test_several_inputs(made, tmp_path):
    block = DataBlock((ImageBlock, ImageBlock, CategoryBlock), n_inp=2, get_items=get_image_files, get_x=[lambda f: f]*2, get_y=parent_label)
    Learner(block.dataloaders(made.images, num_workers=0), small_net(), path=tmp_path).export('export.pkl')
    assert 'one image and one label an item' in wrong(tmp_path/'export.pkl', '--data', made.images)

def test_images_from_no_file(made, tmp_path):
    block = DataBlock((TransformBlock, CategoryBlock), get_x=lambda row: PILImage.create(row[0]), get_y=ColReader(1), item_tfms=ToTensor)
    items = pd.DataFrame([(np.zeros((8, 8, 3), np.uint8), name) for name in 'ab'*4])
    Learner(block.dataloaders(items, bs=2, num_workers=0), small_net(), path=tmp_path).export('export.pkl')
    for name in 'ab': shutil.copytree(made.images/'valid'/'red', tmp_path/'images'/name)
    assert "doesn't read its images from files" in wrong(tmp_path/'export.pkl', '--data', tmp_path/'images')

def test_code_that_is_not_here(made, tmp_path, monkeypatch):
    (tmp_path/'my_net.py').write_text('from torch import nn\nclass MyNet(nn.Linear): pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    import my_net
    Learner(made.learn.dls, my_net.MyNet(2, 2), path=tmp_path).export('export.pkl')
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, 'my_net')
    said = wrong(tmp_path/'export.pkl', '--data', made.images)
    assert "needs Python code that isn't found here" in said and 'my_net' in said and 'PYTHONPATH=.' in said

def test_the_help_says_whom_to_trust():
    assert 'from someone you trust' in ' '.join(diagnose('--help').output.split())

# -- a run ------------------------------------------------------------------------------------------------------------

INI = """\
[data:digits]
source = shortcut_digits
n_train = 60
n_valid = 40
n_test = 30
size = 40
bs = 20
[model:net]
arch = small_cnn
width = 4
[experiment:try]
data = digits
model = net
epochs = 2
lr = 0.02
"""

@pytest.fixture
def lab_run(made, monkeypatch):
    "A finished run, and the folder of its data"
    monkeypatch.chdir(made.folder)
    if not (made.folder/'run').exists():
        (made.folder/'settings.ini').write_text(INI)
        run_experiment('try', 'settings.ini', 'run', (), 'cache', say=lambda *_: None)
    return made.folder/'run', made.folder/'cache'

def test_a_run(lab_run):
    folder,cache = lab_run
    before = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    got = diagnose('run', '--data', 'cache', '--max-images', 30, '--scout', '2 steps')
    assert 'looking at 30 of 40 validation images of the run' in got.output and 'page   run/diagnosis.html' in got.output
    assert got.exit_code == 2 and (folder/'diagnosis.html').is_file()
    assert all((folder/name).read_bytes() == data for name,data in before.items())
    learn = finished_learner('run', 'cache')
    known = json.loads((folder/'record.jsonl').read_text().splitlines()[-2])['valid']['accuracy']
    assert float(quiet(learn).validate()[1]) == pytest.approx(known) and learn.lr == 0.02
    assert found('run', '--data', 'cache')['answer'] == str(make_report(learn))

def test_the_page_of_a_run_is_deleted_with_it(lab_run, tmp_path):
    folder = tmp_path/'copy'
    shutil.copytree(lab_run[0], folder)
    (folder/'diagnosis.html').touch()
    assert CliRunner().invoke(app, ['clean', str(folder), '--yes']).exit_code == 0 and not folder.exists()

def test_data_of_a_run_is_where_run_had_it(lab_run, tmp_path):
    "Digits are generated where they aren't"
    found('run', '--data', tmp_path/'other', '--max-images', 20)
    assert (tmp_path/'other').is_dir()

def test_a_run_that_is_not_finished(lab_run, tmp_path):
    folder = tmp_path/'copy'
    shutil.copytree(lab_run[0], folder)
    state = json.loads((folder/'state.json').read_text())
    (folder/'state.json').write_text(json.dumps(state | dict(next=['test'])))
    assert "isn't finished. To go on with it: proxy-attention run try" in wrong(folder)
