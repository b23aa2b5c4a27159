"""The page is made from records alone, says what the numbers say, and takes any string as text."""
import json
import re
from html.parser import HTMLParser

import pytest

from proxy_attention.lab.report.demo_page import curves, paired_difference
from proxy_attention.lab.report.records import read_records
from proxy_attention.lab.report.run_tables import table_text
from proxy_attention.lab.report.run_verdict import verdict
from proxy_attention.lab.report.run_page import write_report

hostile = '<script>alert(1)</script>"\'&amp;{{ 7*7 }}'


def make_run(folder, arm='early_look', both=45, only_proxy=15, only_control=5, n=100, end=True, scout=None, same=False, **config):
    folder.mkdir(parents=True, exist_ok=True)
    about = dict(made_by='proxy_attention demo', version='1', judge='layercam', settings=dict(name='demo', proxy=dict(fill='black')))
    (folder/'config.json').write_text(json.dumps(about | config))
    lines = [] if scout is None else [dict(kind='scout', arm=arm) | scout]
    for a,acc in ((arm, (both+only_proxy)/n), ('control', (both+only_control)/n)):
        lines += [dict(kind='epoch', arm=a, cycle=c, epoch=3*c+i, step=18*(3*c+i), test_accuracy=acc*i/3, valid_accuracy=0.9)
                  for c in (0, 1) for i in (1, 2, 3)]
        lines += [dict(kind='fit', arm=a, cycle=c, items=1200, proxies=1200*(1-c), steps=54, train_accuracy=0.9, valid_accuracy=0.9,
                       test_accuracy=acc, on_digit=0.3, on_shortcut=0.2, seconds_train=10., seconds_score=0.5, seconds_saliency=None, peak_ram_mb=800.)
                  for c in ((0, 1) if a == arm else (0,))]
    if end: lines.append(dict(kind='end', n_test=n, both_right=both, only_proxy=only_proxy, only_control=only_control, same_weights=same, seconds=30., seconds_measure=2.))
    (folder/'record.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    return folder

class Checker(HTMLParser):
    "Tags that are opened are closed; what was seen is remembered"
    void = {'meta', 'link', 'img', 'br', 'wbr'}
    def __init__(self):
        super().__init__()
        self.stack,self.tags,self.attrs = [],[],[]
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += [(tag, k, v) for k,v in attrs]
        if tag not in self.void: self.stack.append(tag)
    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += [(tag, k, v) for k,v in attrs]
    def handle_endtag(self, tag): assert self.stack.pop() == tag

def check(page):
    html = Checker()
    html.feed(page)
    assert html.stack == []
    assert 'script' not in html.tags
    for _,k,v in html.attrs:
        if k in ('src', 'href'): assert v.startswith('data:image/png;base64,'), "the page needs another file"
    assert not re.search(r'url\(|@import|https?://', page)
    return html


def test_from_records_alone(tmp_path):
    import base64
    run = make_run(tmp_path/'run')
    (run/'gallery.png').write_bytes(b'\x89PNG picture')
    first = write_report(run).read_text()
    html = check(first)
    assert base64.b64encode(b'\x89PNG picture').decode() in first
    assert [v for t,k,v in html.attrs if t == 'img' and k == 'alt'][0]
    assert {'table', 'svg', 'h1', 'main'} <= set(html.tags) and ('html', 'lang', 'en') in html.attrs
    assert 'prefers-color-scheme: dark' in first and 'width=device-width' in first
    assert write_report(run).read_text() == first # Nothing else comes in
    assert sorted(p.name for p in run.iterdir()) == ['config.json', 'gallery.png', 'record.jsonl', 'report.html']

def test_hostile_strings(tmp_path):
    run = make_run(tmp_path/'run', arm=hostile, version=hostile, judge=hostile, settings={hostile: {hostile: hostile}, 'name': hostile})
    page = write_report(run).read_text()
    check(page)
    assert '<script' not in page and '&lt;script&gt;' in page and '{{ 7*7 }}' in page

@pytest.mark.parametrize('a, b, word', [(60, 5, 'a gain'), (5, 60, 'a loss'), (10, 10, 'no effect shown'), (12, 8, 'no effect shown'),
                                        (0, 0, 'no effect shown')])
def test_verdict_follows_the_numbers(tmp_path, a, b, word):
    said = verdict(read_records(make_run(tmp_path/'run', both=20, only_proxy=a, only_control=b)))
    assert word in said[0] and f"{20+a}.0% of 100" in said[0] and f"control on {20+b}.0%" in said[0]
    for other in {'a gain', 'a loss', 'no effect shown'} - {word}: assert other not in said[0]
    assert 'another seed' in said[1]

found = dict(words="Shortcut found.", verdict='shortcut', reason='', held_out=150, image=.95, copy=.09, second=.8, chance=.1, necessity=1.01, necessity_low=.96, necessity_high=1.05,
             necessity_bound=.5, sufficiency=.82, sufficiency_low=.75, sufficiency_high=.89, sufficiency_bound=.1)

def test_what_the_scouts_found_comes_first_with_its_numbers(tmp_path):
    said = verdict(read_records(make_run(tmp_path/'a', scout=found)))
    assert said[0] == "Shortcut found." and '150 held-out images' in said[1] and '82.0% [75.0% to 89.0%]' in said[1] and 'a gain' in said[2]
    page = write_report(tmp_path/'a').read_text()
    assert page.index('<p>Shortcut found.</p>') < page.index('held-out') < page.index('<table') and 'not used' not in page
    spread = found | dict(verdict='spread', words="No single region.", **{k: None for k in found if k.startswith('suff') or k == 'second'})
    said = verdict(read_records(make_run(tmp_path/'b', scout=spread, same=True, both=50, only_proxy=0, only_control=0)))
    assert said[0] == "No single region." and 'second' not in said[1] and 'the same network' in said[2] and '50.0% of 100' in said[2] and len(said) == 3
    (tmp_path/'b'/'gallery.png').write_bytes(b'PNG')
    assert 'Candidates that were tested and are not used' in write_report(tmp_path/'b').read_text()

def test_what_a_probe_found_is_told_as_such(tmp_path):
    said = verdict(read_records(make_run(tmp_path/'a', scout=found | dict(words="Shortcut found in early layers.", control=.85, necessity_bound=.4))))
    assert 'of 150 training images a probe that was fitted without them knows 95.0%, 9.0% where what it relies on is erased, 85.0% where' in said[1]
    assert 'more than 40.0%' in said[1] and 'a probe fitted on copies knows 82.0% [75.0% to 89.0%]' in said[1] and 'scout' not in said[1]

@pytest.mark.parametrize('odd', [dict(), dict(words=None), dict(words=hostile, held_out=9, reason=''), dict(found, necessity='x', image=None, held_out='y'),
                                 dict(found, sufficiency=float('1e308'), second=[]), dict(found, words={'a': 1}, reason=3)])
def test_odd_lines_of_scouts(tmp_path, odd):
    page = write_report(make_run(tmp_path/'run', scout=odd)).read_text()
    check(page)
    assert '<script' not in page and 'a gain' in page

def test_interval():
    d,low,high = paired_difference(30, 10, 397)
    assert d == pytest.approx(20/397) and low < d < high
    assert paired_difference(10, 30, 397) == pytest.approx((-d, -high, -low))
    assert -1 <= paired_difference(0, 10, 10)[1]

@pytest.mark.parametrize('text', ['', '{"kind": "ep', 'null\n[]\n3\n"x"\n', '{"kind": "fit"}\n',
                                  '{"kind": "end"}\n{"kind": "epoch", "step": "x"}\n', '\x00\xff'])
def test_killed_or_odd_runs(tmp_path, text):
    run = tmp_path/'run'
    run.mkdir()
    (run/'config.json').write_text('{}')
    (run/'record.jsonl').write_text(text)
    check(write_report(run).read_text())
    assert 'did not finish' in verdict(read_records(run))[0]
    table_text(read_records(run))

def test_without_record_or_gallery(tmp_path):
    run = make_run(tmp_path/'run', end=False)
    assert 'did not finish' in write_report(run).read_text()
    (run/'record.jsonl').unlink()
    page = write_report(run).read_text()
    check(page)
    assert 'No fit was recorded' in page and 'No copies were made' in page

def test_not_a_run(tmp_path):
    with pytest.raises(ValueError, match='not the folder of a run'): write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []

def test_table(tmp_path):
    lines = table_text(read_records(make_run(tmp_path/'run'))).splitlines()
    assert lines[0].split()[:4] == ['arm', 'cycle', 'images', 'copies'] and lines[2].split()[:4] == ['early_look', '0', '1,200', '1,200']
    assert '60.0%' in lines[2] and '50.0%' in lines[4] and '–' in lines[2]

def test_curves(tmp_path):
    drawn = curves(read_records(make_run(tmp_path/'run')))
    assert [(c['arm'], c['split']) for c in drawn['lines']] == [('early_look', 'test'), ('early_look', 'valid'), ('control', 'test'), ('control', 'valid')]
    for line in drawn['lines']:
        for x,y in line['dots']: assert drawn['left'] <= x <= drawn['right'] and drawn['top'] <= y <= drawn['bottom']
    assert len(drawn['starts']) == 2 and drawn['lines'][0]['d'].count('M') == 2 # A new fit is a new line

def test_suspects_and_rejects_are_told():
    from proxy_attention.lab.report.run_tables import _looked
    line = dict(wrong=9, items=60, candidates=8, proxies=5, flat=0, suspects=3, rejected=2)
    assert _looked(line) == "9 of 60 training images wrong, 8 chosen, 5 proxies made, 3 kept back as their label is in doubt, 2 copies rejected"
    assert 'doubt' not in _looked({**line, 'suspects': 0, 'rejected': 0})
