"""Maps of runs beside a reference's: the same images, by content; networks that have learnt nothing are called so; arms are paired by seed, and only where that is fair."""
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_study import command
from test_lab_compare import SMALL
from lab_kit import INI
from test_lab_experiment import cache  # noqa: F401

from studies.agreement import against_erm, agreement, agreement_text, agreement_verdict, arm_of, default_out, images_of, judging, summarise
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.runs.job import finished_run
from proxy_attention.lab.runs.runner import run_experiment
from studies.map_agreement import map_agreement
from proxy_attention.lab.metrics.maps import map_quality
from proxy_attention.lab.models.zoo import input_stats, make_model
from proxy_attention.lab.runs.checkpoint import RunError
from proxy_attention.files import read_lines
from proxy_attention.lab.runs.folder import check_free
from proxy_attention.lab.metrics.stats import paired_t
from proxy_attention.saliency import saliency_maps

VIT = '[model:vit]\narch = small_vit\n[proxy:by_layercam]\nscout = 4 steps\nscout_test = false\nmethod = layercam\n'


class Made:
    "Tiny runs: two arms with two seeds, a ViT on the same digits without the shortcut, and others on demand"
    def __init__(self, top, cache): # noqa: F811
        self.top, self.data = top, cache
        (top/'settings.ini').write_text(INI + VIT)
        self.compared = compare('try', ['early'], 2, top/'settings.ini', top/'compared', SMALL, cache, jobs=1, say=lambda *_: None)
        self.vit = self.run('vit', 'model=vit', 'strength=0')
    def run(self, name, *overrides, **kw):
        plain = ['proxy=none', *(o for o in SMALL if not o.startswith('proxy='))]
        return run_experiment('try', self.top/'settings.ini', self.top/name, [*plain, *overrides], self.data, say=lambda *_: None, **kw)
    def arm(self, arm, seed): return self.compared/'arms'/arm/str(seed)

@pytest.fixture(scope='module')
def made(tmp_path_factory, cache): # noqa: F811
    return Made(tmp_path_factory.mktemp('agreement'), cache)

@pytest.fixture(scope='module')
def lines(made): return agreement(made.vit, [made.compared], data=made.data)

def of(lines, kind): return [o for o in lines if o['kind'] == kind]


# ------------------------------------------------------------------------------------------------------------------------------------- the measures

def test_a_line_a_run_and_a_line_an_arm(lines, made):
    head,ref,*_ = lines
    assert [o['kind'] for o in lines] == ['agreement', 'reference', *['result']*4, *['verdict']*2] and head['images'] == ref['n'] == 20
    assert [(o['arm'], o['seed'], o['arch'], o['method']) for o in of(lines, 'result')] == [(a, s, 'small_cnn', 'layercam') for a in ('early', 'erm') for s in (0, 1)]
    for r in of(lines, 'result'): assert r['accuracy'] == read_lines(made.arm(r['arm'], r['seed']))[-1]['test']['accuracy']
    assert ref['accuracy'] == read_lines(made.vit)[-1]['test']['accuracy'] and list(ref['maps']) == ['gradrollout', 'rollout'] and ref['chance'] == 0.1
    assert (head['schema'], head['settings']['name'], len(head['settings_sha256'])) == (1, 'try', 64) and head['commit'] == read_lines(made.vit)[0]['commit']

def by_hand(folder, arch, method):
    "Maps of the test images, read and normalised without the lab"
    split = json.loads((folder/'split.json').read_text())
    files = [Path(split['root'])/f for f in split['test']['files']]
    mean,std = (torch.tensor(s).view(3, 1, 1) for s in input_stats(arch, 'none'))
    x = torch.stack([(torch.from_numpy(cv2.imread(str(f))[..., ::-1].copy()).permute(2, 0, 1)/255 - mean)/std for f in files])
    model = make_model(arch, 10, 'none', size=40, **(dict(width=4) if arch == 'small_cnn' else {})).eval()
    model.load_state_dict(load_file(folder/'weights'/json.loads((folder/'state.json').read_text())['weights']))
    masks = np.stack([np.stack([cv2.imread(str(Path(split['root'])/'.masks'/k/f), 0) > 127 for k in ('digit', 'shortcut')]) for f in split['test']['files']])
    return saliency_maps(model, x, None, method), masks

def test_by_hand(lines, made):
    r = next(o for o in of(lines, 'result') if (o['arm'], o['seed']) == ('early', 1))
    maps,masks = by_hand(made.arm('early', 1), 'small_cnn', 'layercam')
    for m in ('gradrollout', 'rollout'):
        theirs,_ = by_hand(made.vit, 'small_vit', m)
        got = map_agreement(maps, theirs)
        assert r[f'rank_{m}'] == pytest.approx(got['rank_correlation'], abs=1e-4) and r[f'iou_{m}'] == pytest.approx(got['iou_top'], abs=1e-3)
        assert r[f'rank_other_{m}'] == pytest.approx(map_agreement(maps, theirs.roll(10, 0))['rank_correlation'], abs=1e-4)
        assert lines[1]['maps'][m]['on_digit'] == pytest.approx(map_quality(theirs.numpy(), masks, ('digit', 'shortcut'))['on_digit'], abs=1e-4)
    energy = map_quality(maps.numpy(), masks, ('digit', 'shortcut'))
    assert (r['on_digit'], r['on_shortcut']) == (pytest.approx(energy['on_digit'], abs=1e-4), pytest.approx(energy['on_shortcut'], abs=1e-4))

def test_a_network_agrees_with_itself(made):
    r = of(agreement(made.vit, [made.vit], method='rollout', data=made.data), 'result')[0]
    assert r['rank_rollout'] == pytest.approx(1) and r['iou_rollout'] == pytest.approx(1) and r['method'] == 'rollout' and r['rank_other_rollout'] < 1 and r['arm'] == 'erm'

def test_the_reference_may_be_a_cnn(made):
    got = agreement(made.arm('erm', 0), [made.vit], data=made.data)
    assert list(got[1]['maps']) == ['layercam'] and got[2]['method'] == 'gradrollout' and 'rank_layercam' in got[2]

def test_method(lines, made):
    asked = of(agreement(made.vit, [made.arm('erm', 0)], method='gradcam', data=made.data), 'result')[0]
    first = next(o for o in of(lines, 'result') if (o['arm'], o['seed']) == ('erm', 0))
    assert asked['method'] == 'gradcam' and asked['rank_rollout'] != first['rank_rollout'] and asked['accuracy'] == first['accuracy']

def test_maps_that_erased_do_not_judge(made):
    by_layercam = made.run('by_layercam', 'proxy=by_layercam')
    rows = of(agreement(made.vit, [by_layercam, made.arm('erm', 1)], data=made.data), 'result')
    assert {r['method'] for r in rows} == {'gradcam'} and rows[0]['arm'] == 'by_layercam', "one method for all arms"
    assert judging('attention', {'gradrollout'}) == 'rollout' and judging('features', {'rollout'}) == 'layercam'
    with pytest.raises(RunError, match='method='): judging('attention', {'gradrollout', 'rollout'})

# --------------------------------------------------------------------------------------------------------------------------------------- the images

def test_images(made):
    got = agreement(made.vit, [made.arm('erm', 0)], images=7, data=made.data)
    assert got[0]['images'] == got[1]['n'] == got[2]['n'] == 7
    job = finished_run(made.vit, made.data)
    some = images_of(job, 7)
    assert len(set(some)) == 7 and set(some) < set(images_of(job)) and len({job.items.labels[i] for i in some}) == 7 and (images_of(job, 99) == images_of(job)).all()

def test_on(made):
    "The images of another run: a part of the reference's, whose truth isn't known"
    root = json.loads((made.vit/'split.json').read_text())['root']
    part = made.run('part', 'source=folder', f'data.path={root}', 'n_test=10')
    got = agreement(made.vit, [made.arm('erm', 0)], on=part, data=made.data)
    assert got[0]['images'] == got[1]['n'] == 10 and not any(k.startswith('on_') for k in got[2])
    with pytest.raises(RunError, match=r"10 of the 20 test images of .*vit' are no test images of .*part'"): agreement(made.vit, [part], data=made.data)

@pytest.mark.parametrize('change, words', [('data.seed=1', r"20 of the 20 test images of .*vit' are no test images of .*\.png"), ('model.size=48', r'images of \(48')])
def test_other_images(made, change, words):
    other = made.run(change.replace('=', '_').replace('.', '_'), change)
    with pytest.raises(RunError, match=words): agreement(made.vit, [made.arm('erm', 1), other], data=made.data)

def test_images_that_a_run_was_trained_on(made, tmp_path):
    leaky = tmp_path/'leaky'
    shutil.copytree(made.arm('erm', 0), leaky)
    split = json.loads((leaky/'split.json').read_text())
    split['test'],split['train'] = split['train'], split['test']
    (leaky/'split.json').write_text(json.dumps(split))
    with pytest.raises(RunError, match='20 of them it was trained or validated on'): agreement(made.vit, [leaky], data=made.data)

def test_other_classes(made, tmp_path):
    for i in range(40):
        file = tmp_path/'pictures'/'ab'[i % 2]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    other = made.run('two', 'source=folder', f"data.path={tmp_path/'pictures'}", 'n_train=10', 'n_valid=10', 'n_test=10')
    with pytest.raises(RunError, match='2 classes apart'): agreement(made.vit, [other], data=made.data)

def test_data(made, tmp_path):
    got = agreement(made.vit, [made.arm('erm', 0)], data=tmp_path/'elsewhere')
    assert (tmp_path/'elsewhere'/'shortcut_digits').is_dir() and got[2]['rank_rollout'] == agreement(made.vit, [made.arm('erm', 0)], data=made.data)[2]['rank_rollout']

def test_no_test_images(made):
    job = finished_run(made.vit, made.data)
    job.splits['test'] = job.splits['test'][:0]
    with pytest.raises(RunError, match='no test images'): images_of(job)

# ----------------------------------------------------------------------------------------------------------------------------------------- the runs

def test_runs_are_left_as_they_are(made):
    files = lambda: {f: f.stat().st_mtime_ns for f in made.top.rglob('*')}
    before,rng = files(), torch.get_rng_state()
    agreement(made.vit, [made.arm('erm', 0)], data=made.data)
    assert files() == before and torch.equal(torch.get_rng_state(), rng)

def test_names_of_arms(made):
    assert [arm_of(finished_run(f, made.data).conf) for f in (made.arm('early', 0), made.arm('erm', 0), made.vit)] == ['early', 'erm', 'erm']

def test_runs_that_cannot_be_looked_at(made, tmp_path):
    cut = tmp_path/'cut'
    shutil.copytree(made.arm('erm', 0), cut)
    (cut/'state.json').write_text(json.dumps(json.loads((cut/'state.json').read_text()) | dict(next=['test'])))
    with pytest.raises(RunError, match="'.*cut' isn't finished. To go on with it: proxy-attention compare"): agreement(made.vit, [cut], data=made.data)
    (cut/'state.json').unlink()
    with pytest.raises(RunError, match="isn't finished"): agreement(cut, [made.vit], data=made.data)
    for folder in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(RunError, match='not the folder of a run'): agreement(made.vit, [folder], data=made.data)
    with pytest.raises(RunError, match='both erm, seed 0, of small_cnn: leave out one'): agreement(made.vit, [made.compared, made.arm('erm', 0)], data=made.data)
    with pytest.raises(RunError, match='there is none'): agreement(made.vit, [], data=made.data)

@pytest.mark.parametrize('kw, words', [(dict(images=1), 'images=1'), (dict(method='gradcma'), "method='gradcma'.*gradcam")])
def test_bad_input(made, kw, words):
    with pytest.raises(ValueError, match=words): agreement(made.vit, [made.arm('erm', 0)], 'out.jsonl', data=made.data, **kw)
    assert not Path('out.jsonl').exists()

# --------------------------------------------------------------------------------------------------------------------------------------- the summary

def row(arm, seed, rank, arch='small_cnn', **kw):
    return dict(kind='result', arm=arm, seed=seed, arch=arch, accuracy=.5 + seed/100, method='layercam', at_chance=False, rank_rollout=rank, rank_other_rollout=.01,
                iou_rollout=rank/2, on_digit=.3, split_sha256='s', initial_sha256=f'i{seed}{arch}', steps=8) | kw

RANKS = dict(erm=[.1, .12, .11, .13], early_look=[.3, .35, .31, .34], masktune=[.1, .13, .1, .14])

def rows_of(ranks=RANKS, **kw): return [row(a, s, v, **kw) for a,vs in ranks.items() for s,v in enumerate(vs)]

def test_arms_against_erm():
    got = {v['arm']: v for v in summarise(rows_of())}
    d = paired_t(RANKS['early_look'], RANKS['erm'])
    early = got['early_look']['against_erm']
    assert {k: early['rank_rollout'][k] for k in d.to_dict()} == d.to_dict() and early['rank_rollout']['words'] == f"+{d.mean:.3f} [{d.low:.3f}, {d.high:.3f}] over erm"
    assert set(early) == {'rank_rollout', 'iou_rollout'} and 'against_erm' not in got['erm']
    assert got['masktune']['against_erm']['rank_rollout']['words'].startswith('no effect shown')
    assert got['erm']['mean']['rank_rollout'] == pytest.approx(.115) and got['erm']['mean']['accuracy'] == pytest.approx(.515)
    assert got['early_look']['seeds'] == 4

def test_pairs_are_of_one_seed_and_one_network():
    rows = [r for r in rows_of() if not (r['arm'] == 'erm' and r['seed'] == 0)] + [row('erm', s, .9, arch='small_vit') for s in range(4)]
    rows[0]['rank_rollout'] = None # none, seed 1: its maps are flat
    early = next(v for v in summarise(rows) if v['arm'] == 'early_look')['against_erm']
    assert early['rank_rollout']['n'] == 2 and early['rank_rollout']['mean'] == pytest.approx((.31 - .11 + .34 - .13)/2) and early['iou_rollout']['n'] == 3

def test_unfair_arms_are_not_paired():
    rows = [r | dict(steps=9) if r['arm'] == 'masktune' else r for r in rows_of()]
    got = {v['arm']: v for v in summarise(rows)}
    assert 'against_erm' in got['early_look'] and 'against_erm' not in got['masktune'] and 'unequal numbers' in got['masktune']['unfair']
    assert got['masktune']['mean']['rank_rollout'] == pytest.approx(.1175)

def told(rows, **ref):
    ref = dict(kind='reference', run='vit_plain', arch='small_vit', n=397, accuracy=.93, chance=.101, at_chance=False, rank_rollout_rollout=.5,
               maps=dict(rollout=dict(empty_maps=0, on_digit=.4))) | ref
    return [dict(kind='agreement', iou_chance=.0526), ref, *rows, *summarise(rows)]

def test_words():
    said = agreement_verdict(told(rows_of()))
    assert said[0] == "The reference, small_vit (run vit_plain), is right on 93.0% of 397 test images; always the same class would be right on 10.1%."
    assert said[1].startswith('early_look (small_cnn, 51.5% right; the reference 93.0%), rank correlation with rollout: +0.') and said[1].endswith('over erm.')
    assert 'IoU of the brightest tenth with rollout' in said[2] and 'no effect shown' in said[3]
    assert "rank correlation of 0.010 (rollout), random maps an IoU of 0.053. The reference's own maps agree with each other by 0.500" in said[-2]
    assert '4 of them, not adjusted' in said[-1]
    assert not any('chance,' in s for s in said)

def test_a_reference_that_has_learnt_nothing_is_called_so():
    assert 'its maps prove nothing' in agreement_verdict(told(rows_of(), accuracy=.11, at_chance=True))[0]

def test_runs_at_chance_are_named():
    said = agreement_verdict(told([r | dict(at_chance=r['seed'] == 2 and r['arm'] == 'erm', accuracy=.1) for r in rows_of()]))
    assert any(s.endswith('are told apart: erm seed 2 (10.0%).') for s in said)

def test_what_is_not_judged_is_said():
    alone = agreement_verdict(told([row('erm', 0, .1), row('early_look', 0, .3)]))
    assert 'for want of two seeds' in alone[1] and 'brackets' not in alone[-1] and len(alone) == 4
    assert 'not judged against erm; the runs took unequal' in ' '.join(agreement_verdict(told([r | dict(steps=len(r['arm'])) for r in rows_of()])))

def test_chance_of_the_tiny_runs(lines):
    "Eight steps teach nothing: the words say so, and the table has both accuracies"
    assert lines[1]['at_chance'] and 'prove nothing' in agreement_verdict(lines)[0]
    text = agreement_text(lines)
    assert f"{lines[1]['accuracy']:.1%}" in text and all(f"{r['accuracy']:.1%}" in text for r in of(lines, 'result'))
    assert text.count('mean') == 2 and text.count('reference') == 2

def test_text_without_truth():
    rows = [{k: v for k,v in r.items() if not k.startswith('on_')} for r in rows_of()]
    text = agreement_text(told(rows, maps=dict(rollout={})))
    assert 'on digit' not in text and 'rank rollout' in text and '0.350' in text
    assert 'on digit' in agreement_text(told(rows_of()))

# ----------------------------------------------------------------------------------------------------------------------------------------- the record

def test_record(made, tmp_path):
    said = []
    file = tmp_path/'deep'/'a.jsonl'
    got = agreement(made.vit, [made.compared], file, images=5, data=made.data, say=said.append)
    assert read_lines(file) == got and agreement_text(file) == agreement_text(got) and agreement_verdict(file) == agreement_verdict(got)
    assert len(said) == 5 and said[0].startswith('reference: ') and said[1].startswith('early seed 0: ')
    head = got[0]
    assert f"agree {made.vit} {made.compared} --out {file} --images 5" in head['command'] and len(head['images_sha256']) == 64
    assert all(len(o[k]) == 64 for o in got[1:6] for k in ('weights_sha256', 'settings_sha256', 'initial_sha256'))
    assert len({o['weights_sha256'] for o in got[1:6]}) == 5
    (tmp_path/'notes.jsonl').write_text('{"mine": 1}\n')
    for out,words in ((tmp_path/'notes.jsonl', 'not a record of agreement'), (tmp_path, 'is a folder')):
        with pytest.raises(ValueError, match=words): agreement(made.vit, [made.compared], out, data=made.data)
    assert (tmp_path/'notes.jsonl').read_text() == '{"mine": 1}\n'

@pytest.mark.parametrize('kind', ['agreement', 'second'])
def test_a_record_is_ours_by_its_mark_and_not_by_its_kind(kind):
    Path('mine.jsonl').write_text(json.dumps(dict(kind=kind)) + '\n')
    with pytest.raises(ValueError, match=f'not a record of {kind}'): check_free('mine.jsonl', kind)
    Path('mine.jsonl').write_text(json.dumps(dict(kind=kind, made_by='proxy_attention run')) + '\n')
    check_free('mine.jsonl', kind)

# ------------------------------------------------------------------------------------------------------------------------------- the command line

def test_a_reference_among_the_runs_counts_in_no_mean(made):
    _,_,*rows = agreement(made.arm('erm', 0), [made.compared], images=6, data=made.data)
    mine = [r for r in rows if r['kind'] == 'result' and r.get('is_reference')]
    assert [(r['arm'], r['seed']) for r in mine] == [('erm', 0)]
    found = {r['arm']: r['seeds'] for r in rows if r['kind'] == 'verdict'}
    assert found.pop('erm') == 1 and set(found.values()) == {2}

def test_intervals_of_correlations_end_where_these_do():
    rows = lambda v: {s: dict(seed=s, rank_a=x, iou_a=x, steps=1, split_sha256='a', initial_sha256=s) for s,x in enumerate(v)}
    found = against_erm(rows([-1, 1]), rows([1, -1]), ['rank_a', 'iou_a'])['against_erm']
    assert [(v['low'], v['high']) for v in found.values()] == [(-2, 2), (-1, 1)]

def test_command(made, monkeypatch, capsys):
    command(monkeypatch, 'agree', made.vit, made.compared, '--images', 6, '--data', made.data)
    file, said = default_out(made.vit), capsys.readouterr().out
    assert file == Path('runs/agreement_vit.jsonl') and read_lines(file)[0]['images'] == 6
    assert agreement_text(file) in said and all(s in said for s in agreement_verdict(file)) and f'record   {file}' in said
    command(monkeypatch, 'agree', made.vit, made.arm('erm', 0), '--on', made.arm('erm', 1), '--method', 'gradcam', '--out', 'b.jsonl', '--data', made.data)
    head, *rest = read_lines('b.jsonl')
    assert [r['method'] for r in rest if r['kind'] == 'result'] == ['gradcam'] and [r['arm'] for r in rest if r['kind'] == 'verdict'] == ['erm']
    assert head['command'].startswith('python -m studies agree') and f"--on {made.arm('erm', 1)} --method gradcam" in head['command']

@pytest.mark.parametrize('args, words', [(['nowhere', 'vit'], 'not the folder of a run'), (['vit', 'vit', '--method', 'x'], "method='x'"), (['vit', 'vit', '--images', '0'], 'images=0')])
def test_command_errors(made, monkeypatch, args, words):
    before = os.listdir()
    with pytest.raises(SystemExit, match=words): command(monkeypatch, 'agree', *(made.vit if a == 'vit' else a for a in args))
    assert os.listdir() == before
