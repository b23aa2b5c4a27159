"""settings.ini: what is wrong is said in one line with file, section, key and value; nothing but SettingsError ever comes out."""
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings as hypo
from hypothesis import strategies as st

from proxy_attention.lab.config.search import Range
import proxy_attention
from proxy_attention.lab.config import search, sections
from proxy_attention.lab.config import settings as config
from proxy_attention.lab.runs.plan import check_settings
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.file import find_settings, kinds
from proxy_attention.lab.config.settings import load_experiment
from proxy_attention.policy import Policy, presets

good = """\
[DEFAULT]
seed = 3
[data:digits]
source = shortcut_digits
strength = 0.8
n_train = 300
[model:small]
arch = small_cnn
width = 8
[proxy:mine]
area = 0.1
per_class = true
scout = 120 steps
place =
[proxy:other]
threshold = mean+2std
[experiment:try]
data = digits
model = small
proxy = mine
lr = 1e-3
"""
repo = Path(__file__).resolve().parents[1]


@pytest.fixture
def read(tmp_path):
    def _read(text=good, name='try', **kw):
        (tmp_path/'settings.ini').write_text(text, encoding='utf-8')
        return load_experiment(name, tmp_path/'settings.ini', **kw)
    return _read

def says(read, text, *words, **kw):
    with pytest.raises(SettingsError) as e: read(text, **kw)
    message = str(e.value)
    assert len(message.split('\n')) == len(e.value.problems) and all(w in message for w in words), message
    return message


def test_good(read):
    got = read()
    assert (got.data.strength, got.data.n_train, got.data.seed, got.model.width) == (0.8, 300, 3, 8)
    assert (got.experiment.seed, got.experiment.lr, got.name) == (3, 1e-3, 'try')
    assert got.proxy.policy == {'area': 0.1, 'per_class': True, 'scout': '120 steps'} and got.proxy.place is None

def test_frozen(read):
    got = read()
    with pytest.raises(ValueError): got.data.seed = 1
    with pytest.raises(ValueError): got.data = None

def test_default_reaches_only_who_knows_the_key(read):
    got = read(good.replace('seed = 3', 'seed = 3\nbs = 16\narea = 0.3'))
    assert got.data.bs == 16 and got.proxy.area == 0.1 # The section's own wins
    other = read(good.replace('seed = 3', 'seed = 3\narea = 0.3').replace('proxy = mine', 'proxy = other'))
    assert other.proxy.area is None and other.proxy.threshold == 'mean+2std' # A default doesn't contradict a section

def test_values_with_signs(read):
    assert read(good.replace('120 steps', '50%')).proxy.scout == '50%' # No interpolation
    assert read(good.replace('120 steps', '2.5')).proxy.scout == 2.5

@pytest.mark.parametrize('old, new, words', [
    ('strength', 'strenght', ["[data:digits]", "strenght='0.8'", "'strength'"]),
    ('0.8', 'high', ["[data:digits]", "strength='high'", 'number']),
    ('0.8', '1.8', ["strength='1.8'", 'less than or equal to 1']),
    ('0.8', 'nan', ["strength='nan'"]),
    ('300', '300.5', ["n_train='300.5'", 'not a whole number']),
    ('seed = 3', 'sede = 3', ['[DEFAULT]', "sede='3'", "'seed'"]),
    ('seed = 3', 'seed = three', ["seed='three'"]),
    ('[data:digits]', '[dta:digits]', ["'dta'", "'data'"]),
    ('[data:digits]', '[digits]', ['[digits]', 'kind']),
    ('[data:digits]', '[data:../digits]', ['[data:../digits]', 'a slash']),
    ('[data:digits]', '[data:/digits]', ['[data:/digits]', 'a slash']),
    ('[data:digits]', '[data:..]', ['[data:..]', "'..'"]),
    ('[data:digits]', '[data:a\\b]', ['a slash']),
    ('[data:digits]', '[data:]', ['[data:]', 'name']),
    ('proxy = mine', 'proxy = mien', ['[experiment:try]', "proxy='mien'", "'mine'"]),
    ('model = small\n', '', ['[experiment:try]', 'model', 'missing']),
    ('model = small\n', 'model =\n', ['[experiment:try]', 'model', 'string']),
    ('mine\nlr = 1e-3', 'mine\nlr = fast', ["lr='fast'"]), ('mine\nlr = 1e-3', 'mine\nlr = 0', ["lr='0'", 'above 0']),
    ('lr = 1e-3', 'until = acc>0.9', ["until='acc>0.9'", 'accuracy']), ('lr = 1e-3', 'until = accuracy', ["until='accuracy'"]),
    ('lr = 1e-3', 'precision = fp8', ["precision='fp8'", 'bf16']), ('lr = 1e-3', 'monitor = acuracy', ["'accuracy'"]),
    ('scout = 120 steps', 'look_after = 120 steps', ["look_after='120 steps': no such key"]), ('seed = 3', 'look_after = 3', ['[DEFAULT]', "look_after='3': no such key"]),
    ('scout = 120 steps', 'scout = off\ncycles = 0', ['cycles = 0 makes no copies without a scout']), ('scout = 120 steps', 'cycles = 0\nlabel_gate = true', ['cycles = 0 makes no copies']),
    ('per_class', 'label_gate = true\nper_class', ['set scout = off']),
    ('source = shortcut_digits\n', '', ['[data:digits]', 'source', 'missing']), ('arch = small_cnn\n', '', ['[model:small]', 'arch', 'missing']),
    ('area = 0.1', 'area = 0.1\nthreshold = 0.6', ['[proxy:mine]', 'area or threshold']),
    ('area = 0.1', 'merge = ad', ["merge='ad'", "'add'"]),
    ('place =', 'merge = replce', ["merge='replce'", "'replace'"]),
    ('area = 0.1', 'area = 0.1\narea = 0.2', ['settings.ini', 'area']),
    ('[proxy:other]', '[proxy:mine]', ['settings.ini', 'proxy:mine']),
    ('[proxy:other]', '[proxy: mine]', ['two proxy sections', 'mine']),
    ('area = 0.1', 'area', ['settings.ini', 'area']),
    ('[DEFAULT]', 'seed = 1\n[DEFAULT]', ['settings.ini'])])
def test_wrong(read, old, new, words):
    assert old in good
    says(read, good.replace(old, new, 1), 'settings.ini', *words)

def test_the_keys_of_a_policy_are_its_fields():
    known, fields = kinds['proxy'].model_fields, vars(Policy())
    assert {*fields} - {*known} == {'thresh'} and all(known[k].default is None for k in fields if k in known)

@pytest.mark.parametrize('old, new, words', [
    ('120 steps', '120 stps', ["scout='120 stps'", "'N steps'"]), ('120 steps', 'holes', ["scout='holes'", "'N steps'"]), ('120 steps', '0 steps', ['above 0']),
    ('120 steps', '0', ['scout=0.0', 'above 0']), ('120 steps', '25 %%', ["scout='25 %%'"]), ('120 steps', '9'*400 + '%', ['out of range']),
    ('120 steps', '9'*400 + ' steps', ['out of range']), ('area = 0.1', 'target = tru', ["target='tru'", "'true'"]), ('area = 0.1', 'area = 7', ['area=7.0', 'up to 1']),
    ('area = 0.1', 'share = 0', ['share=0.0', 'above 0']), ('area = 0.1', 'rounds = 11', ['rounds=11', 'from 1 to 10']), ('area = 0.1', 'repeat = 0', ['repeat=0']),
    ('area = 0.1', 'samples = 0', ['samples=0']), ('area = 0.1', 'blur = 0.6', ['blur=0.6'])])
def test_values_of_a_policy_are_checked_before_a_run(read, old, new, words):
    "Types are checked when the file is read, values by the policy itself, which needs torch"
    with pytest.raises(SettingsError) as e: check_settings(read(good.replace(old, new, 1)))
    assert all(w in str(e.value) for w in [*words, '[proxy:mine]']), e.value

def test_everything_wrong_is_told_at_once_with_its_line(read, tmp_path):
    text = good.replace('seed = 3', 'sede = 3').replace('0.8', 'high').replace('300', '1e9').replace('area = 0.1', 'aera = 0.1').replace('= small\n', '= smol\n')
    with pytest.raises(SettingsError) as e: read(text)
    lines = text.splitlines()
    got = e.value.problems
    assert [(p.key, lines[p.line-1]) for p in got] == [('sede', 'sede = 3'), ('strength', 'strength = high'), ('n_train', 'n_train = 1e9'), ('aera', 'aera = 0.1'),
                                                       ('model', 'model = smol')]
    assert str(e.value).count('\n') == 4 and all(f", line {p.line}, [{p.section}]" in str(p) for p in got)
    assert got[0].to_dict() == dict(message=got[0].message, file=str(tmp_path/'settings.ini'), line=2, section='DEFAULT', key='sede', value='3')

def test_a_wrong_default_is_told_once(read):
    with pytest.raises(SettingsError) as e: read(good.replace('seed = 3', 'seed = three'))
    assert len(e.value.problems) == 1 and e.value.problems[0].line == 2 # Two sections have it from there

@pytest.mark.parametrize('text, line', [(good.replace('area = 0.1', 'area'), 11), (good.replace('area = 0.1', 'area = 0.1\narea = 0.2'), 12),
                                        (good.replace('[proxy:other]', '[proxy:mine]'), 15), (good.replace('[data:digits]', '[dta:digits]'), 3)])
def test_lines_of_what_cannot_be_read(read, text, line):
    with pytest.raises(SettingsError) as e: read(text)
    assert any(p.line == line for p in e.value.problems), e.value

def test_comments_and_continued_values_do_not_shift_lines(read):
    with pytest.raises(SettingsError) as e: read(good.replace('[proxy:mine]', '# area = 3\n\n[proxy:mine]\nscout =\n  5\n; area = 4').replace('area = 0.1', 'area = seven').replace('scout = 120 steps', ''))
    assert [p.line for p in e.value.problems] == [16]

def test_no_proxy(read):
    got = read(good.replace('proxy = mine\n', ''))
    assert got.proxy is None and read(overrides=['proxy=none']).proxy is None
    says(read, good.replace('proxy = mine\n', ''), 'no proxy section', overrides=['area=0.2'])
    assert read(good.replace('proxy = mine\n', ''), overrides=['area=0.2', 'proxy=mine']).proxy.area == 0.2
    assert read(overrides=['epochs=3', 'proxy=none']).epochs == 3 # Nobody else has epochs
    says(read, good, 'proxy.epochs or experiment.epochs', overrides=['epochs=3'])

def test_where_values_come_from(read, tmp_path):
    read()
    conf,rows = config.explain('try', tmp_path/'settings.ini', ['area=0.2'])
    where = {(k, key): (v, w) for k,_,key,v,w in rows}
    assert where['proxy', 'area'] == (0.2, '--set area=0.2') and where['data', 'strength'] == (0.8, 'line 5')
    assert where['data', 'seed'] == (3, 'line 2 [DEFAULT]') and where['data', 'bs'] == (64, 'default')
    assert len(rows) == sum(len(kinds[k].model_fields) for k in ('data', 'model', 'proxy', 'experiment')) and conf.name == 'try'

def test_epochs_are_the_policy_s_or_the_experiment_s(read):
    assert read(overrides=['experiment.epochs=3']).epochs == 3
    assert read(overrides=['experiment.epochs=3', 'proxy.epochs=4']).epochs == 4

def test_unused_sections_are_checked_too(read): says(read, good.replace('mean+2std', '0.5\ncycles = none of them'), '[proxy:other]', 'line 17', "cycles='none of them'")

def test_unknown_experiment(read): says(read, good, '[experiment:tri]', "'try'", name='tri')

def test_not_text(tmp_path):
    (tmp_path/'s.ini').write_bytes(b'[data:x]\n\xff\xfe')
    with pytest.raises(SettingsError, match='UTF-8'): load_experiment('demo', tmp_path/'s.ini')

def test_byte_order_mark(tmp_path):
    (tmp_path/'s.ini').write_text(good, encoding='utf-8-sig')
    assert load_experiment('try', tmp_path/'s.ini').data.n_train == 300

@pytest.mark.parametrize('change, words', [
    ('seed=1', ['data.seed or experiment.seed']), ('aera=1', ["'area'"]), ('area', ['key=value']), ('=', ['key']), ('proxi.area=1', ["'proxy'"]),
    ('data.area=1', ['no such key']), ('area=two', ["area='two'", '[proxy:mine]']), ('proxy=mien', ["'mine'"]), ('threshold=0.5', ['area or threshold']),
    ('', ['key=value'])])
def test_wrong_overrides(read, change, words): says(read, good, *words, overrides=[change])

def test_overrides(read):
    got = read(overrides=['area=0.2', 'data.seed = 5', 'experiment.seed=6', 'width=4'])
    assert (got.proxy.area, got.data.seed, got.experiment.seed, got.model.width) == (0.2, 5, 6, 4)
    got = read(overrides=['cycles=7', 'proxy=other']) # The other section, with the change
    assert got.proxy.threshold == 'mean+2std' and got.proxy.cycles == 7
    assert read(overrides=['area=', 'threshold=0.5']).proxy.policy == {'threshold': 0.5, 'per_class': True, 'scout': '120 steps'}

def test_which_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = find_settings()
    assert package.is_file() and package.is_absolute() and tmp_path not in package.parents
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nlib_name = something_else\n') # Another tool's
    assert find_settings() == package
    (tmp_path/'settings.ini').write_text(good)
    assert find_settings() == Path('settings.ini') and load_experiment('try').data.strength == 0.8
    with pytest.raises(SettingsError, match='nowhere.ini'): find_settings('nowhere.ini')
    with pytest.raises(SettingsError, match='not a file'): find_settings(tmp_path)

def test_no_file_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proxy_attention, '__file__', str(tmp_path/'a/b/__init__.py'))
    with pytest.raises(SettingsError, match='no settings.ini'): find_settings()

def test_own_file():
    file = repo/'settings.ini'
    if not file.is_file(): file = find_settings()
    ours,literal = (load_experiment('demo', file, [f'proxy={p}']) for p in ('default', 'proposal'))
    assert load_experiment('demo', file) == ours and Policy(**ours.proxy.policy) == Policy(), "the demo's default is the library's"
    assert Policy(**literal.proxy.policy) == Policy(**presets['proposal']) and ours.data == literal.data

def test_off(read):
    plain = good.replace('scout = 120 steps\n', '')
    policy = read(plain.replace('area = 0.1', 'area = 0.1\nscout = off\nselect = off')).proxy.policy
    assert policy['scout'] is None and policy['select'] is None
    assert read(plain.replace('area = 0.1', 'area = 0.1\nlabel_gate = true')).proxy.policy['scout'] is None, 'the gate comes in its place'
    policy = read(plain.replace('area = 0.1', 'area = 0.1\nscout = 25%\nselect = none')).proxy.policy
    assert policy['scout'] == '25%' and 'select' not in policy

words = ['[DEFAULT]', '[data:digits]', '[model:small]', '[proxy:mine]', '[experiment:try]', '[data:', ']', '[]', '[x]', '[:]',
         '=', ':', ' ', '\n', '\n', '\n ', '%',
         '%(x)s', 'none', '0.5', '-1', '1e999', 'true', 'data = digits', 'model = small', 'proxy = mine',
         *{f for c in kinds.values() for f in c.model_fields}, '#', ';', '\ufeff', '\x00']
texts = st.lists(st.one_of(st.sampled_from(words), st.text(max_size=6)), max_size=25).map(''.join)
lines = good.splitlines()
mixed = st.tuples(st.lists(st.sampled_from(lines)), texts, st.lists(st.sampled_from(lines))).map(lambda t: '\n'.join([*t[0], t[1], *t[2]]))

def attempt(data, overrides=()):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'settings.ini'
        file.write_bytes(data)
        try: load_experiment('try', file, overrides)
        except SettingsError as e: assert e.problems and len(str(e).split('\n')) == len(e.problems) and all('\n' not in str(p) for p in e.problems)

@hypo(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(texts, mixed))
@example('[data:x\n')
@example(good.replace('= 0.1', '=\n  0.1\n 5'))
def test_any_file(text): attempt(text.encode('utf-8', 'surrogatepass'))

@hypo(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(data): attempt(data)

@hypo(max_examples=150, deadline=None)
@given(st.lists(texts, max_size=2))
def test_any_override(overrides): attempt(good.encode(), overrides)

values = st.one_of(st.sampled_from(['', '0', '-0', '1e400', 'inf', '0x10', '½', '٣', '1_0', 'none', 'True', '9'*400, '1 steps', '%']), st.text(max_size=8))
keys = [f'{k}.{f}' for k,c in kinds.items() for f in c.model_fields]

@hypo(max_examples=300, deadline=None)
@given(st.sampled_from(keys), values)
def test_any_value(key, value): attempt(good.encode(), [f'{key}={value}'])

numbers = [f'{k}.{f}' for k,c in kinds.items() if k in ('data', 'model', 'proxy', 'experiment') for f,about in c.model_fields.items() if 'int' in str(about.annotation) or 'float' in str(about.annotation)]

@pytest.mark.parametrize('value', ['inf', '-inf', 'nan', '1e999'])
def test_no_number_is_infinite(read, value):
    assert len(numbers) > 30
    for key in numbers: says(read, good, f"{key.partition('.')[2]}='{value}'", overrides=[f'{key}={value}'])

def test_no_number_in_words_is_infinite(read): says(read, good, 'must be a finite number', overrides=['until=accuracy>=1e999'])

def test_no_model_holds_an_infinite_number():
    from pydantic import BaseModel
    made = [c for m in (config, sections, search) for c in vars(m).values() if isinstance(c, type) and issubclass(c, BaseModel) and c is not BaseModel]
    assert len(made) > 8 and all(c.model_config.get('allow_inf_nan') is False for c in made)
    with pytest.raises(ValueError, match='finite'): Range(low=0., high=float('inf'))

def test_planted_shortcuts_and_reserved_digits(read):
    got = read(overrides=['shortcut=texture', 'reserved=500', 'data.holdout=true']).data
    assert (got.shortcut, got.reserved, got.holdout) == ('texture', 500, True)
    usual = read().data
    assert (usual.shortcut, usual.reserved, usual.holdout) == (None, 0, False) and read(overrides=['shortcut=none']).data == usual
    says(read, good, 'holdout=true', 'set reserved', overrides=['holdout=true'])
    says(read, good, "reserved=500 is for source=shortcut_digits", "'cifar10'", overrides=['reserved=500', 'source=cifar10'])
    says(read, good, "reserved='-1'", overrides=['reserved=-1'])
    says(read, good, "holdout='maybe'", overrides=['holdout=maybe'])
    says(read, good, "'shortcut'", overrides=['shortcutt=square'])

def test_data_sections_of_the_study(tmp_path):
    file = repo/'studies'/'settings.ini'
    def data(name, *more): return load_experiment('study_digits', file, [f'data={name}', *more]).data
    square = data('square_asl')
    assert (square.source, square.shortcut, square.strength, square.size, square.per_class) == ('asl_digits', 'square', .95, 64, 40)
    search, holdout = data('reserved_digits'), data('holdout_digits')
    assert search.reserved == holdout.reserved == 500 and not search.holdout and holdout.holdout and search.seed != holdout.seed
    assert Policy(**load_experiment('study_digits', file, ['proxy=default']).proxy.policy) == Policy(), "the study's default is the library's"
    from proxy_attention.lab.data.sources import load_items
    assert [len(load_items(d, tmp_path).fixed['test']) for d in (search, holdout)] == [297, 500]


# -- the label gate -------------------------------------------------------------------------------------------------------------------------------

def test_keys_of_the_label_gate_are_the_labs_own():
    from proxy_attention.lab.config.sections import ProxyConfig
    conf = ProxyConfig(label_gate='true', label_folds='3', label_epochs='2', accept='true', select='all')
    assert (conf.label_gate, conf.label_folds, conf.label_epochs) == (True, 3, 2) and conf.policy == dict(select='all', accept=True, scout=None)
    assert ProxyConfig().label_gate is False and ProxyConfig().policy == {}

@pytest.mark.parametrize('key,value', [('label_gate', 'perhaps'), ('label_folds', '1'), ('label_folds', '21'), ('label_epochs', '0')])
def test_bad_values_of_the_label_gate(key, value):
    from proxy_attention.lab.config.sections import ProxyConfig
    with pytest.raises(ValueError, match=key): ProxyConfig(**{key: value})
