"""Maps of runs beside a reference's: the same images, by content, and arms paired by seed, only where that is fair."""
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lab_kit import INI, SMALL
from safetensors.torch import load_file
from test_study import command

from proxy_attention.files import read_lines
from proxy_attention.lab.metrics.maps import map_quality
from proxy_attention.lab.metrics.stats import paired_t
from proxy_attention.lab.models.zoo import input_stats, make_model
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.lab.runs.folder import check_free
from proxy_attention.lab.runs.job import finished_run
from proxy_attention.lab.runs.runner import run_experiment
from proxy_attention.saliency import saliency_maps
from studies.map_agreement import map_agreement
from studies.agreement import agreement, agreement_table, agreement_words, arm_of, judges, judging

VIT = '[model:vit]\narch = small_vit\n[proxy:by_layercam]\nscout = 4 steps\nscout_test = false\nmethod = layercam\n'


class Made:
    "Tiny runs: two arms with two seeds, a ViT on the same digits without the shortcut, and others on demand"
    def __init__(self, top, cache, compared):
        self.top, self.data, self.compared = top, cache, compared
        (top/'settings.ini').write_text(INI + VIT)
        self.vit = self.run('vit', 'model=vit', 'strength=0')
    def run(self, name, *overrides, **kw):
        plain = ['proxy=none', *(o for o in SMALL if not o.startswith('proxy='))]
        return run_experiment('try', self.top/'settings.ini', self.top/name, [*plain, *overrides], self.data,
                              say=lambda *_: None, **kw)
    def arm(self, arm, seed): return self.compared/'arms'/arm/str(seed)
    def agree(self, *runs, reference=None, data=None, **kw):
        return agreement(reference or self.vit, runs, 'record.jsonl', data or self.data, **kw)

@pytest.fixture(scope='module')
def made(tmp_path_factory, cache, two_arms): return Made(tmp_path_factory.mktemp('agreement'), cache, two_arms)

@pytest.fixture(scope='module')
def lines(made, tmp_path_factory):
    return agreement(made.vit, [made.compared], tmp_path_factory.mktemp('lines')/'record.jsonl', made.data)

def results(lines): return [o for o in lines if o['kind'] == 'result']

# ------------------------------------------------------------------------------------------------------- the measures

def test_a_line_a_run(lines, made):
    head,ref,*rows = lines
    assert [o['kind'] for o in lines] == ['agreement', 'reference', *['result']*4] and ref['n'] == 20
    assert [(o['arm'], o['seed'], o['arch'], o['method']) for o in rows] == [
        (a, s, 'small_cnn', 'layercam') for a in ('early', 'erm') for s in (0, 1)]
    for r in rows: assert r['accuracy'] == read_lines(made.arm(r['arm'], r['seed']))[-1]['test']['accuracy']
    assert ref['accuracy'] == read_lines(made.vit)[-1]['test']['accuracy']
    assert list(ref['maps']) == ['gradrollout', 'rollout'] and ref['chance'] == 0.1
    assert (head['schema'], head['settings']['name'], len(head['images_sha256'])) == (1, 'try', 64)
    assert head['commit'] == read_lines(made.vit)[0]['commit']

def by_hand(folder, arch, method):
    "Maps of the test images, read and normalised without the lab, and the truth"
    split = json.loads((folder/'split.json').read_text())
    root,names = Path(split['root']), split['test']['files']
    mean,std = (torch.tensor(s).view(3, 1, 1) for s in input_stats(arch, 'none'))
    read = [torch.from_numpy(cv2.imread(str(root/f))[..., ::-1].copy()).permute(2, 0, 1)/255 for f in names]
    model = make_model(arch, 10, 'none', size=40, **(dict(width=4) if arch == 'small_cnn' else {})).eval()
    weights = json.loads((folder/'state.json').read_text())['weights']
    model.load_state_dict(load_file(folder/'weights'/weights))
    masks = np.stack([np.stack([cv2.imread(str(root/'.masks'/k/f), 0) > 127 for k in ('digit', 'shortcut')]) for f in names])
    return saliency_maps(model, torch.stack([(x - mean)/std for x in read]), None, method), masks

def test_by_hand(lines, made):
    r = next(o for o in results(lines) if (o['arm'], o['seed']) == ('early', 1))
    maps,masks = by_hand(made.arm('early', 1), 'small_cnn', 'layercam')
    for m in ('gradrollout', 'rollout'):
        theirs,_ = by_hand(made.vit, 'small_vit', m)
        got,other = map_agreement(maps, theirs), map_agreement(maps, theirs.roll(10, 0))
        assert r[f'rank_{m}'] == pytest.approx(got['rank_correlation'], abs=1e-4)
        assert r[f'iou_{m}'] == pytest.approx(got['iou_top'], abs=1e-3) and r['iou_chance'] == got['iou_chance']
        assert r[f'other_{m}'] == pytest.approx(other['rank_correlation'], abs=1e-4)
        truth = map_quality(theirs.numpy(), masks, ('digit', 'shortcut'))
        assert lines[1]['maps'][m]['on_digit'] == pytest.approx(truth['on_digit'], abs=1e-4)
    truth = map_quality(maps.numpy(), masks, ('digit', 'shortcut'))
    for k in ('on_digit', 'on_shortcut'): assert r[k] == pytest.approx(truth[k], abs=1e-4)

def test_a_network_agrees_with_itself(made):
    r = results(made.agree(made.vit))[0]
    assert r['rank_gradrollout'] == r['iou_gradrollout'] == pytest.approx(1) and r['method'] == 'gradrollout'
    assert r['other_gradrollout'] < 1 and r['arm'] == 'erm'

def test_the_reference_may_be_a_cnn(made):
    got = made.agree(made.vit, reference=made.arm('erm', 0))
    assert list(got[1]['maps']) == ['layercam'] and got[2]['method'] == 'gradrollout' and 'rank_layercam' in got[2]

def test_maps_that_erased_do_not_judge(made):
    by_layercam = made.run('by_layercam', 'proxy=by_layercam')
    rows = results(made.agree(by_layercam, made.arm('erm', 1)))
    assert {r['method'] for r in rows} == {'gradcam'} and rows[0]['arm'] == 'by_layercam', "one method for all arms"
    assert judging(judges['attention'], {'gradrollout'}) == 'rollout'
    assert judging(judges['features'], {'rollout'}) == 'layercam'
    with pytest.raises(RunError, match='erased by all of gradrollout, rollout'):
        judging(judges['attention'], {'gradrollout', 'rollout'})

# -------------------------------------------------------------------------------------------------- images and runs

@pytest.mark.parametrize('change, words', [('data.seed=1', r"20 of the 20 test images of .*vit' are no test images"),
                                           ('model.size=48', r'images of \(48')])
def test_other_images(made, change, words):
    other = made.run(change.replace('=', '_').replace('.', '_'), change)
    with pytest.raises(RunError, match=words): made.agree(made.arm('erm', 1), other)

def test_images_that_a_run_was_trained_on(made, tmp_path):
    leaky = tmp_path/'leaky'
    shutil.copytree(made.arm('erm', 0), leaky)
    split = json.loads((leaky/'split.json').read_text())
    split['test'],split['train'] = split['train'], split['test']
    (leaky/'split.json').write_text(json.dumps(split))
    with pytest.raises(RunError, match='20 of them it was trained or validated on'): made.agree(leaky)

def test_other_classes(made, tmp_path):
    for i in range(40):
        file = tmp_path/'pictures'/'ab'[i % 2]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    other = made.run('two', 'source=folder', f"data.path={tmp_path/'pictures'}", 'n_train=10', 'n_valid=10', 'n_test=10')
    with pytest.raises(RunError, match='2 classes apart'): made.agree(other)

def test_images_whose_truth_is_not_known(made):
    root = json.loads((made.vit/'split.json').read_text())['root']
    plain = made.run('plain', 'source=folder', f'data.path={root}', 'n_test=10')
    got = made.agree(made.arm('erm', 0), reference=plain)
    assert got[1]['n'] == 10 and not any(k.startswith('on_') for k in got[2]) and 'on digit' not in agreement_table(got)[0]

def test_data(made, tmp_path, lines):
    got = made.agree(made.arm('early', 0), data=tmp_path/'elsewhere')
    assert (tmp_path/'elsewhere'/'shortcut_digits').is_dir() and got[2] == lines[2]

def test_runs_are_left_as_they_are(made):
    def files(): return {f: f.stat().st_mtime_ns for f in made.top.rglob('*')}
    before,rng = files(), torch.get_rng_state()
    made.agree(made.arm('erm', 0))
    assert files() == before and torch.equal(torch.get_rng_state(), rng)

def test_names_of_arms(made):
    runs = made.arm('early', 0), made.arm('erm', 0), made.vit
    assert [arm_of(finished_run(f, made.data).conf) for f in runs] == ['early', 'erm', 'erm']

def test_runs_that_cannot_be_looked_at(made, tmp_path):
    cut = tmp_path/'cut'
    shutil.copytree(made.arm('erm', 0), cut)
    (cut/'state.json').unlink()
    with pytest.raises(RunError, match="isn't finished"): made.agree(made.vit, reference=cut)
    for folder in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(RunError, match='not the folder of a run'): made.agree(folder)
    with pytest.raises(RunError, match='there is none'): made.agree()

# ----------------------------------------------------------------------------------------------------------- in words

RANKS = dict(erm=[.1, .12, .11, .13], early=[.3, .35, .31, .34], masktune=[.1, .13, .1, .14])

def row(arm, seed, rank, **kw):
    return dict(kind='result', arm=arm, seed=seed, accuracy=.5 + seed/100, at_chance=False, rank_rollout=rank,
                other_rollout=.01, iou_rollout=rank/2, iou_chance=.0526, on_digit=.3, split_sha256='s',
                initial_sha256=f'i{seed}', steps=8) | kw

def told(rows=None, **ref):
    rows = rows or [row(a, s, v) for a,vs in RANKS.items() for s,v in enumerate(vs)]
    return [dict(kind='agreement'), dict(kind='reference', arch='small_vit', n=397, accuracy=.93, chance=.101, at_chance=False,
                                         maps=dict(rollout=dict(on_digit=.4))) | ref, *rows]

def test_arms_against_erm():
    head,ref,erm,early,masktune = agreement_table(told())
    d = paired_t(RANKS['early'], RANKS['erm'])
    assert head[4:7] == ['on digit', 'rank correlation', 'against erm'] and ref[1:5] == ['the reference itself', '', '93.0%', '40.0%']
    assert erm == ['rollout', 'erm', 4, '51.5%', '30.0%', '0.115', '', '0.058', '']
    assert early[5:7] == ['0.325', f'+{d.mean:.3f} [{d.low:.3f}, {d.high:.3f}]'] and masktune[6].endswith('no effect shown')

def test_pairs_are_of_one_seed():
    rows = [r for r in told()[2:] if (r['arm'], r['seed']) != ('erm', 0)]
    rows[0]['rank_rollout'] = None # erm, seed 1: its maps are flat
    early = agreement_table(told(rows))[3]
    d = paired_t(RANKS['early'][2:], RANKS['erm'][2:])
    assert early[6].startswith(f'+{d.mean:.3f} [') and agreement_table(told([row('erm', 0, .1), row('early', 0, .3)]))[3][6] == ''

def test_unfair_arms_are_not_compared():
    with pytest.raises(RunError, match='unequal numbers'): agreement_table(told([row('erm', 0, .1), row('early', 0, .3, steps=9)]))

def test_words():
    said = agreement_words(told())
    assert said.startswith("The reference, small_vit, is right on 93.0% of 397 test images; always the same class would be right on 10.1%.")
    assert "rank correlation of 0.010 (rollout), random maps an IoU of 0.053." in said and 'chance,' not in said
    assert 'its maps prove nothing' in agreement_words(told(accuracy=.11, at_chance=True))
    blind = [row('erm', 0, .1), row('erm', 1, .1, at_chance=True, accuracy=.1)]
    assert 'are told apart: erm seed 1 (10.0%).' in agreement_words(told(blind))

def test_the_tiny_runs(lines):
    "Eight steps teach nothing, and the words say so"
    assert lines[1]['at_chance'] and 'prove nothing' in agreement_words(lines) and len(agreement_table(lines)) == 1 + 2*3

# ------------------------------------------------------------------------------------------- record and command line

def test_what_is_somebody_elses_is_left(made):
    Path('record.jsonl').write_text('{"kind": "agreement"}\n')
    with pytest.raises(ValueError, match='not a record of agreement'): made.agree(made.compared)
    assert Path('record.jsonl').read_text() == '{"kind": "agreement"}\n'
    Path('record.jsonl').write_text(json.dumps(dict(kind='agreement', made_by='proxy_attention run')) + '\n')
    check_free('record.jsonl', 'agreement')

def test_command(made, monkeypatch, capsys, lines):
    command(monkeypatch, 'agree', made.vit, made.compared, '--out', 'deep/a.jsonl', '--data', made.data)
    said,got = capsys.readouterr().out, read_lines('deep/a.jsonl')
    assert got[1:] == lines[1:] and agreement_table('deep/a.jsonl') == agreement_table(lines)
    assert agreement_words(lines) in said and 'reference: ' in said and 'early seed 0: ' in said
    assert got[0]['command'] == f'python -m studies agree {made.vit} {made.compared} --out deep/a.jsonl --data {made.data}'
    before = os.listdir()
    with pytest.raises(SystemExit, match='not the folder of a run'):
        command(monkeypatch, 'agree', 'nowhere', made.vit, '--out', 'b.jsonl')
    assert os.listdir() == before
