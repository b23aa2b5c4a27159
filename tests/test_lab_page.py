"""The page of a run: what it says is what the record holds, nothing in it comes from elsewhere, and a browser shows it without a complaint."""
import os
import base64
import contextlib
import hashlib
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_kit import make_run

from proxy_attention.lab.report.run_page import class_rows, gallery, run_curves, run_pieces, write_report
from proxy_attention.lab.report.records import read_records
from proxy_attention.lab.report.run_tables import stage_rows, table_text
from proxy_attention.lab.report.run_verdict import summary, verdict, wilson

pytestmark = pytest.mark.usefixtures('drawn_once')

hostile = '<script>alert(1)</script>"\'&amp;{{ 7*7 }}'


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

def edit(run, change):
    "Rewrite the record: `change` gets its lines"
    lines = [json.loads(line) for line in (run/'record.jsonl').read_text(encoding='utf-8').splitlines()]
    change(lines)
    (run/'record.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in lines))
    return run

def check(page):
    "Well-formed, nothing from elsewhere, and our script alone, which the policy names"
    doc = Checker()
    doc.feed(page)
    assert doc.stack == [] and doc.tags.count('script') == 1
    for _,k,v in doc.attrs:
        if k == 'src': assert v.startswith('data:image/jpeg;base64,')
        if k == 'href': assert v.startswith('#')
        assert not k.startswith('on')
    assert not re.search(r'url\((?!#)|@import|https?://', page)
    script = page[page.index('<script>')+8:page.index('</script>', page.index('<script>'))]
    policy = next(v for t,k,v in doc.attrs if t == 'meta' and k == 'content' and 'default-src' in v)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy and "default-src 'none'" in policy
    return doc

def rows_of(page): return [[html.unescape(re.sub(r'<[^>]+>', '', c)).strip() for c in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r, re.S)] for r in re.findall(r'<tr[^>]*>(.*?)</tr>', page, re.S)]


# -- what it says ---------------------------------------------------------------------------------------------------------------------------------

def test_the_table_is_the_record(tmp_path):
    run = make_run(tmp_path/'try', masks=True, undone=(1,), accuracies=(.8, .7, .9))
    rows = stage_rows(read_records(run))
    assert [r['what'] for r in rows] == ['Stage 1', 'Stage 2, cycle 1', 'Stage 3, cycle 1', 'Stage 2, cycle 2', 'Stage 3, cycle 2', 'Test']
    assert [r['undone'] for r in rows] == [False, False, True, False, False, False] and rows[2]['accuracy'] == .7
    page = write_report(run).read_text()
    check(page)
    shown = {r[0]: r for r in rows_of(page) if r}
    quality = next(r for r in rows_of(page) if r[0] == 'Stage 3, cycle 1 (undone)')
    assert quality[1:6] == ['1,318', '118', '5', '190', '70.0%'] and '40.0%' in quality # and its saliency on the digit
    assert shown['colour misleads'][1:] == ['40', '41.0%'] and shown['50%'][0] == '50%'
    assert 'images wrong, 120 chosen, 118 proxies made, 2 empty maps' in page
    assert '100 of 1,200 training images wrong' in page
    text = table_text(read_records(run)).splitlines()
    assert text[0].split()[:4] == ['stage', 'images', 'proxies', 'epochs'] and text[2].startswith('Stage 1') and '80.0%' in text[2] and '(undone)' in text[4] and '30.5' in text[2]
    assert 'on digit' in text[0] and 'on digit' not in table_text(read_records(make_run(tmp_path/'plain')))

def test_verdict_of_a_run(tmp_path):
    run = make_run(tmp_path/'try', undone=(2,), accuracies=(.8, .85, .6, .9), rollback=.05)
    said = verdict(read_records(run))
    end = read_records(run)['end']
    low,high = wilson(end['test']['accuracy'], 300)
    assert f"right on {end['test']['accuracy']:.1%} of 300 test images" in said[0] and f"{low:.1%} to {high:.1%}" in said[0]
    whole = ' '.join(said)
    assert '90.0% after cycle 3' in whole and '80.0% after Stage 1: +10.0 points, after 570 optimizer steps instead of 190' in whole
    assert 'no control' in whole and 'proxy-attention compare' in whole and 'Cycle 2 was undone, having worsened accuracy by more than 0.05' in whole

@pytest.mark.parametrize('stop, more, words', [
    ('until', dict(until='accuracy>=0.9'), 'the target accuracy>=0.9 was reached'), ('patience', dict(patience=2, monitor='f1'), '2 cycles went by without improvement of f1'),
    ('budget', dict(budget=60.), 'the budget of 60 seconds was spent'), ('nothing left to erase', {}, 'nothing left to erase'), ('diverged', {}, 'training diverged'),
    ('cycles done', {}, 'All its 2 cycles were done'), ('something new', {}, 'something new'), (None, {}, 'no reason is given')])
def test_why_it_stopped(tmp_path, stop, more, words):
    line = make_run(tmp_path/'try', stop=stop, pictures=0)
    edit(line, lambda lines: lines[-1].update(stop=stop))
    config = json.loads((line/'config.json').read_text())
    config['settings']['experiment'].update(more)
    (line/'config.json').write_text(json.dumps(config))
    assert any(words in s for s in verdict(read_records(line)))

@pytest.mark.parametrize('valid, word', [(.99, 'above'), (.5, 'below'), (None, '')])
def test_validation_that_does_not_carry_over(tmp_path, valid, word):
    run = make_run(tmp_path/'try', accuracies=(.8, .9), pictures=0)
    if valid is not None: edit(run, lambda lines: lines[-2]['valid'].update(accuracy=valid))
    said = [s for s in verdict(read_records(run)) if 'does not carry over' in s]
    assert len(said) == (valid is not None) and all(f'{valid:.1%}, {word}' in s for s in said)

def test_no_proxies_no_claim(tmp_path):
    said = ' '.join(verdict(read_records(make_run(tmp_path/'try', accuracies=(.8,), proxy=False, stop='trained'))))
    assert 'no training on proxies' in said and 'trained once, without proxies' in said and 'points' not in said

def test_all_cycles_undone(tmp_path):
    assert 'what is tested is the network of Stage 1' in ' '.join(verdict(read_records(make_run(tmp_path/'try', accuracies=(.8, .7), undone=(1,)))))

def test_without_test_images(tmp_path):
    run = edit(make_run(tmp_path/'try'), lambda lines: lines[-1].update(tested_on='valid'))
    assert 'validation images' in verdict(read_records(run))[0] and 'too good' in verdict(read_records(run))[0]
    assert stage_rows(read_records(run))[-1]['what'] == 'End, validation' and summary(run)['tested_on'] == 'valid'

def test_a_bad_audit_comes_first(tmp_path):
    run = make_run(tmp_path/'try', audit=dict(ok=False, problems=[f'copy 1 is {hostile}', 'two'], near=1, checked='2 problems'))
    said,page = verdict(read_records(run)), write_report(run).read_text()
    assert 'audit found 2 problems' in said[0] and "can't be trusted" in said[0] and 'test images' in said[1]
    check(page)
    assert '<div class="verdict warn">' in page or '<section class="verdict warn"' in page
    assert '1 pair of images' in page and summary(run)['audit_ok'] is False
    clean = write_report(make_run(tmp_path/'clean')).read_text()
    assert 'class="verdict warn"' not in clean and '3 pairs of images' in clean

@pytest.mark.parametrize('until', range(13))
def test_unfinished(tmp_path, until):
    run = make_run(tmp_path/'try', epochs=2, until=until, pictures=1)
    page = write_report(run).read_text()
    check(page)
    assert 'not finished' in verdict(read_records(run))[0] and 'proxy-attention run try' in page
    s = summary(run)
    assert not s['done'] and s['next'] and s['test_accuracy'] is None and s['experiment'] == 'try'
    table_text(read_records(run))

@pytest.mark.parametrize('todo, words', [(['prepare'], 'Stage 0'), (['find_lr'], 'learning rate'), (['train', 0], 'Stage 1'), (['proxies', 2], 'Stage 2, cycle 2'),
                                         (['train', 2], 'Stage 3, cycle 2'), (['test'], 'come to Test'), (None, 'later')])
def test_what_comes_next(tmp_path, todo, words):
    run = make_run(tmp_path/'try', until=8)
    (run/'state.json').write_text(json.dumps(dict(next=todo)))
    assert words in verdict(read_records(run))[0]

def test_wilson():
    low,high = wilson(.5, 100)
    assert (low, high) == pytest.approx((.40383, .59617), abs=1e-5) # statsmodels' proportion_confint(50, 100, method='wilson')
    assert wilson(0, 50)[0] == pytest.approx(0, abs=1e-12) and wilson(1, 50)[1] == pytest.approx(1) and wilson(.5, 1000)[0] > low


# -- records alone, records odd -------------------------------------------------------------------------------------------------------------------

def test_a_published_record(tmp_path):
    run = make_run(tmp_path/'try')
    (tmp_path/'results').mkdir()
    shutil.copy(run/'record.jsonl', tmp_path/'results/record.jsonl')
    page = write_report(tmp_path/'results').read_text()
    check(page)
    assert 'no pictures of proxies' in page and 'gradcam++' in page and '2.15.0' in page and verdict(read_records(run)) == verdict(read_records(tmp_path/'results/record.jsonl'))
    assert write_report(tmp_path/'results/record.jsonl', tmp_path/'other.html').read_text() == page
    assert sorted(p.name for p in (tmp_path/'results').iterdir()) == ['record.jsonl', 'report.html']

@pytest.mark.parametrize('name', ['nowhere', 'empty', 'file.txt', 'empty.jsonl'])
def test_not_a_run(tmp_path, name):
    (tmp_path/'empty').mkdir()
    for f in ('file.txt', 'empty.jsonl'): (tmp_path/f).write_text('x')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match='not the folder of a run'): write_report(tmp_path/name)
    with pytest.raises(ValueError, match='not the folder of a run'): summary(tmp_path/name)
    assert sorted(tmp_path.rglob('*')) == before

def test_hostile_names(tmp_path):
    names = [hostile, 'Žluťoučký kůň 🐴', '-->', '</style>', 'e'*300, ' ']
    run = make_run(tmp_path/'try', names=names, masks=True)
    def change(lines):
        lines[-1]['maps']['on_' + hostile] = .5
        lines[-1]['test']['per_group'][hostile] = dict(accuracy=.5, n=3)
        lines[-1]['test']['accuracy_at'][hostile] = dict(accuracy=.5, share=.5)
        lines[-1]['audit']['checked'] = hostile
    page = write_report(edit(run, change)).read_text()
    check(page)
    assert '<script>alert' not in page and '&lt;script&gt;alert' in page and '{{ 7*7 }}' in page

junk = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-5, 10**6), st.floats(), st.text(max_size=5)), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)), max_leaves=6)

@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_value_may_be_odd(tmp_path_factory, data):
    "A page is whole, or the record is refused as damaged"
    run = test_any_value_may_be_odd.__dict__.setdefault('run', None) or make_run(tmp_path_factory.mktemp('odd')/'try', masks=True, epochs=1, pictures=1)
    test_any_value_may_be_odd.__dict__['run'] = run
    whole = test_any_value_may_be_odd.__dict__.setdefault('whole', (run/'record.jsonl').read_text())
    lines = [json.loads(line) for line in whole.splitlines()]
    for _ in range(data.draw(st.integers(1, 4))):
        o = data.draw(st.sampled_from(lines))
        while True:
            key = data.draw(st.sampled_from(sorted(o) if isinstance(o, dict) else list(range(len(o)))))
            if isinstance(o[key], (dict, list)) and o[key] and data.draw(st.booleans()): o = o[key]
            else: break
        if key != 'kind': o[key] = data.draw(junk)
    (run/'record.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    for made in (lambda: check(write_report(run).read_text()), lambda: table_text(read_records(run)), lambda: json.dumps(summary(run))):
        with contextlib.suppress(ValueError): made()

@pytest.mark.parametrize('text', ['', 'null', '[]', '{"files": 3}', '[{"files": null}, 3, {"files": ["x.jpg"]}]', '[{"files": ["../../config.json", "../record.jsonl"]}]', '\xff'])
def test_odd_galleries(tmp_path, text):
    run = make_run(tmp_path/'try', pictures=0)
    (run/'gallery').mkdir(exist_ok=True)
    (run/'gallery/cycle1.json').write_text(text, encoding='latin-1')
    if text.startswith(('{', '[{"files": null')):
        with pytest.raises(ValueError, match='damaged'): write_report(run)
        return
    page = write_report(run).read_text()
    check(page)
    assert 'no pictures of proxies' in page

def test_gallery(tmp_path):
    run = make_run(tmp_path/'try', accuracies=(.5, .6, .7, .8), pictures=9)
    cards,total = gallery(run)
    assert len(cards) == total == 27 and [c['cycle'] for c in cards[::9]] == [1, 2, 3]
    first = json.loads((run/'gallery/cycle1.json').read_text())[0]
    assert [what for what,_ in cards[0]['pictures']] == ['original', 'map', 'copy'] and cards[0]['label'] == first['label']
    assert base64.b64decode(cards[0]['pictures'][2][1].split(',')[1]) == (run/'gallery'/first['files'][2]).read_bytes()
    fewer,total = gallery(run, most=6)
    assert [c['cycle'] for c in fewer] == [1, 1, 2, 2, 3, 3] and total == 27

def test_many_classes(tmp_path):
    names = [f'class {i}' for i in range(100)]
    run = make_run(tmp_path/'try', names=names, n=1500)
    page = write_report(run).read_text()
    check(page)
    assert 'class="confusion"' not in page and 'Most often confused, of 100 classes' in page and 'The other 80 classes' in page
    report_ = read_records(run)['end']['test']
    rows = class_rows(report_)
    assert len(rows) == 100 and [r['f1'] for r in rows] == sorted(v['f1'] for v in report_['per_class'].values())
    few = write_report(make_run(tmp_path/'few', names=names[:10])).read_text()
    assert 'class="confusion"' in few and 'The other' not in few

def test_a_page_of_a_thousand_classes_stays_small(tmp_path):
    page = write_report(make_run(tmp_path/'try', names=[f'n{i:08}' for i in range(1000)], n=2000, accuracies=(.5, .6), pictures=2)).read_text()
    check(page)
    assert len(page) < 1e6


# -- curves, several runs -------------------------------------------------------------------------------------------------------------------------

def test_curves_by_epochs_and_by_seconds(tmp_path):
    r = read_records(make_run(tmp_path/'try', epochs=2, undone=(1,)))
    pieces,marks = run_pieces(r, 'accuracy')
    assert [[x for x,_ in p['points']] for p in pieces] == [[1, 2], [3, 4], [5, 6]] and [p['faint'] for p in pieces] == [False, True, False] and marks == [2, 4]
    pieces,_ = run_pieces(r, 'valid_loss', 'seconds')
    assert [round(x, 1) for p in pieces for x,_ in p['points']] == [6.1, 12.2, 21.8, 27.9, 37.5, 43.6] # 3.5 seconds of making proxies between them
    assert pieces[0]['points'][0][1] == r['epochs'][0]['valid_loss']

def test_several_runs(tmp_path):
    runs = [make_run(tmp_path/'a', accuracies=(.7, .8)), make_run(tmp_path/'b', accuracies=(.5, .6), names=['x', 'y'], seed=3), make_run(tmp_path/'sub'/'a', until=9)]
    page = write_report(runs, tmp_path/'all.html').read_text()
    check(page)
    assert '3 runs side by side' in page and 'not a comparison' in page
    names = [r[0] for r in rows_of(page[page.index('All runs'):])[1:4]]
    assert names[1] == 'b' and names[0] != names[2] and names[2].endswith('sub/a')
    assert len(run_curves([read_records(r) for r in runs])) == 4
    for i in range(3): assert f'id="run{i}"' in page and f'href="#run{i}"' in page and f'stroke: var(--arm{i})' in page
    with pytest.raises(ValueError, match='out=None'): write_report(runs)
    with pytest.raises(ValueError, match='empty'): write_report([])

def test_summary(tmp_path):
    s = summary(make_run(tmp_path/'try', accuracies=(.7, .6, .8), undone=(1,), seed=4))
    assert (s['stage1_accuracy'], s['valid_accuracy'], s['undone'], s['cycles'], s['seed'], s['done'], s['stop']) == (.7, .8, [1], 2, 4, True, 'cycles done')
    assert s['test_low'] < s['test_accuracy'] < s['test_high'] and s['test_images'] == 300 and s['proxies_made'] == 236

def test_reading_a_record_is_light(tmp_path):
    run = make_run(tmp_path/'try', pictures=1)
    code = f"import sys; from proxy_attention.lab.report.run_page import write_report; write_report({str(run)!r}); assert not {{'torch', 'fastai', 'pandas'}} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent.parent)

def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make_run(tmp_path/'try')
    before = write_report(run).read_text()
    def full(*_): raise OSError('disk full')
    monkeypatch.setattr(os, 'replace', full)
    edit(run, lambda lines: lines[-1].update(stop='until'))
    with pytest.raises(OSError): write_report(run)
    assert (run/'report.html').read_text() == before


# -- in a browser ---------------------------------------------------------------------------------------------------------------------------------

chromium = next((c for c in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if c), None)
in_browser = pytest.mark.skipif(chromium is None, reason="no Chromium here to open the page in")

class Proxy(http.server.BaseHTTPRequestHandler):
    "Notes whatever a browser asks the net for, and gives nothing"
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_error(404)
    do_CONNECT = do_POST = do_GET
    def log_message(self, *_): pass

@pytest.fixture
def browse(tmp_path):
    "A function: the page as the browser has it, what it complained of, and what it asked the net for"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Proxy)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def look(address):
        server.asked.clear()
        args = [chromium, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
                '--disable-default-apps', '--disable-extensions', f'--user-data-dir={tmp_path/"profile"}', '--enable-logging=stderr', '--virtual-time-budget=3000', '--hide-scrollbars', '--window-size=1200,900',
                f'--proxy-server=http://127.0.0.1:{server.server_port}', '--proxy-bypass-list=<-loopback>', '--dump-dom', address]
        got = subprocess.run(args, capture_output=True, text=True, timeout=120)
        complaints = [line for line in got.stderr.splitlines() if ':CONSOLE' in line]
        return got.stdout, complaints, [a for a in server.asked if 'google' not in a and 'gvt1' not in a] # its own errands
    yield look
    server.shutdown()
    server.server_close()

def framed(width, *pages):
    "A page that shows `pages` in frames of that width and then says how wide they got"
    frames = ''.join(f'<iframe style="border:0" width={width} height=900 srcdoc="{html.escape(p, quote=True)}"></iframe>' for p in pages)
    return f"""<!doctype html><body>{frames}<script>
onload = () => {{ document.title = [...document.querySelectorAll('iframe')].map(f => f.contentDocument.documentElement).map(d => d.clientWidth + ' ' + d.scrollWidth).join(', '); }}</script>"""

def widths(dom): return [tuple(map(int, w.split())) for w in re.search(r'<title>([\d ,]+)</title>', dom)[1].split(',')]

@in_browser
def test_in_a_browser(tmp_path, browse):
    run = make_run(tmp_path/'try', names=['cat', hostile, 'Žluťoučký kůň 🐴', 'd'*80], masks=True, undone=(2,), accuracies=(.5, .7, .6, .8))
    page = write_report(run)
    dom,complaints,asked = browse(f'file://{page}#cycle=2')
    assert complaints == [] and asked == []
    cards = re.findall(r'<figure class="card" data-class="[^"]*" data-cycle="(\d)"( hidden="")?>', dom)
    assert len(cards) == 24 and all(bool(hidden) == (cycle != '2') for cycle,hidden in cards) # The filter works
    assert '<form hidden' not in dom and '8 of 24' in dom
    dom,complaints,_ = browse(f'file://{page}#class=cat&cycle=3')
    cards = re.findall(r'<figure class="card" data-class="([^"]*)" data-cycle="(\d)"( hidden="")?>', dom)
    assert [c[:2] for c in cards if not c[2]] == [('cat', '3')]*2 and complaints == []
    plain = page.read_text()
    assert '<form hidden>' in plain and ' hidden="">' not in plain # Without scripts all are shown

@in_browser
def test_the_browser_test_sees_trouble(tmp_path, browse):
    (tmp_path/'bad.html').write_text('<img src="http://elsewhere.test/x.png"><script>console.error("trouble"); undefined_()</script>')
    _,complaints,asked = browse(f'file://{tmp_path}/bad.html')
    assert len(complaints) >= 2 and any('elsewhere.test' in a for a in asked)
    (tmp_path/'wide.html').write_text(framed(390, '<!doctype html>', '<!doctype html><body style="margin:0"><div style="width:700px">wide</div>'))
    assert widths(browse(f'file://{tmp_path}/wide.html')[0]) == [(390, 390), (390, 700)]

@in_browser
def test_an_injected_script_does_not_run(tmp_path, browse):
    page = write_report(make_run(tmp_path/'try')).read_text().replace('<h1>', '<script>document.title = "taken over"</script><h1>')
    (tmp_path/'bad.html').write_text(page)
    dom,complaints,_ = browse(f'file://{tmp_path}/bad.html')
    assert '<title>taken over</title>' not in dom and complaints

@in_browser
def test_no_sideways_scrolling_on_a_phone(tmp_path, browse):
    "A run, one of many classes, one that isn't finished, and several"
    run = make_run(tmp_path/'a', names=['x'*90, *(f'class_with_a_long_name_{i}' for i in range(9))], masks=True, pictures=2)
    many,half = make_run(tmp_path/'m', names=[f'class number {i}' for i in range(60)], n=900, pictures=2), make_run(tmp_path/'h', until=9, pictures=2)
    pages = [*map(write_report, (run, many, half)), write_report([run, make_run(tmp_path/('b'*60), pictures=2)], tmp_path/'all.html')]
    (tmp_path/'frame.html').write_text(framed(390, *(p.read_text() for p in pages)))
    assert widths(browse(f'file://{tmp_path}/frame.html')[0]) == [(390, 390)]*4


def test_what_scouts_found(tmp_path):
    records = read_records(make_run(tmp_path/'run', accuracies=(.8,)))
    assert 'There was no training on proxies.' in verdict(records) and not any('cout' in s for s in verdict(records)) and not any(r['what'] == 'Scouts' for r in stage_rows(records))
    text = "No single region carries the answer. No copies are used."
    records['scouts'] = [dict(kind='scout', cycle=0, items=1200, steps=40, copies=0, text=f'scout: {text}', verdict=dict(name='spread'), seconds_scout=3.)]
    assert f'Before Stage 1 scouts were sent. {text}' in verdict(records) and 'There was no training on proxies.' not in verdict(records)
    assert [r['what'] for r in stage_rows(records)][:2] == ['Scouts', 'Stage 1']
    row = stage_rows(records)[0]
    assert (row['steps'], row['note'], row['seconds_scout']) == (40, text, 3.) and run_pieces(records, 'accuracy', 'seconds')[0][0]['points'][0][0] == pytest.approx(9.1)
    cells = next(line for line in table_text(records).splitlines() if line.startswith('Scouts')).split()
    assert '40' in cells and cells[-2] == '3.0'

def test_suspects_and_rejects_are_told():
    from proxy_attention.lab.report.run_tables import _looked
    line = dict(wrong=9, items=60, candidates=8, proxies=5, flat=0, suspects=3, rejected=2)
    assert _looked(line) == "9 of 60 training images wrong, 8 chosen, 5 proxies made, 3 kept back as their label is in doubt, 2 copies rejected"
    assert 'doubt' not in _looked({**line, 'suspects': 0, 'rejected': 0})
