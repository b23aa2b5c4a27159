"""The loop of stages as plain data: when it is enough, what is undone, and what is called when."""
import pytest

from proxy_attention import stages
from proxy_attention.stages import StopRule, parse_until, run_stages, smaller_is_better

NAN = float('nan')

def stops(values, name='accuracy', **kwargs):
    "What the rule says after each value"
    rule = StopRule(name, names=('accuracy', 'valid_loss', 'error_rate'), **kwargs)
    return [rule.update({name: v}, 1., k > 0) for k,v in enumerate(values)]

@pytest.mark.parametrize('text,yes,no', [('accuracy>=0.5', 0.5, 0.49), ('accuracy > 0.5', 0.51, 0.5), (' valid_loss<=1e-2 ', 0.01, 0.02), ('valid_loss<-1', -2, -1)])
def test_until_is_read(text, yes, no):
    name,enough = parse_until(text, ('accuracy', 'valid_loss'))
    assert name in text and enough(yes) and not enough(no)

@pytest.mark.parametrize('text', ['accuracy', 'accuracy=0.5', 'accuracy>=high', '', None, 0.5])
def test_until_that_can_not_be_read(text):
    with pytest.raises(ValueError, match='until='): parse_until(text, ('accuracy',))

def test_until_names_what_is_measured():
    with pytest.raises(ValueError, match="until='acuracy'.*Did you mean 'accuracy'"): parse_until('acuracy>=0.5', ('accuracy', 'valid_loss'))

def test_direction():
    assert all(map(smaller_is_better, ('valid_loss', 'train_loss', 'error_rate'))) and not any(map(smaller_is_better, ('accuracy', 'f1_score')))

def test_until(): assert stops([0.5, 0.8, 0.95], until='accuracy>=0.9') == [(False, ''), (False, ''), (False, 'until')]

def test_patience():
    assert [why for _,why in stops([0.5, 0.6, 0.6, 0.5, 0.7], patience=2)] == ['', '', '', 'patience', '']
    assert [why for _,why in stops([0.5, 0.4], patience=1)] == ['', 'patience']

def test_smaller_losses_are_better():
    assert [why for _,why in stops([0.5, 0.4, 0.3], 'valid_loss', patience=1)] == ['']*3
    assert [why for _,why in stops([0.3, 0.4], 'error_rate', patience=1)] == ['', 'patience']

@pytest.mark.parametrize('budget', [2.5, 3])
def test_budget(budget): assert [why for _,why in stops([0.5]*3, budget=budget)] == ['', '', 'budget']

def test_a_rule_goes_on_from_what_was_best():
    rule = StopRule('accuracy', patience=2, best=0.9)
    assert [rule.update({'accuracy': v})[1] for v in (0.8, 0.9)] == ['', 'patience'] and rule.seconds == 0

def test_rollback():
    assert [back for back,_ in stops([0.5, 0.45, 0.39, 0.36], rollback=0.1)] == [False, False, False, False], "each is compared with the last one kept"
    assert [back for back,_ in stops([0.5, 0.3, 0.42, 0.3], rollback=0.1)] == [False, True, False, True]
    assert [back for back,_ in stops([0.5, 0.7], 'valid_loss', rollback=0.1)] == [False, True]
    assert [back for back,_ in stops([0.5, 0.1], rollback=None)] == [False, False]
    assert [back for back,_ in stops([0.75, 0.5, 0.125], rollback=0.25)] == [False, False, True], "by more than this, not by just as much"

def test_a_stage_undone_does_not_reach_the_goal():
    rule = StopRule('accuracy', 'f1>=0.9', rollback=0.1, names=('accuracy', 'f1'))
    assert rule.update(dict(accuracy=0.8, f1=0.5)) == (False, '') and rule.update(dict(accuracy=0.2, f1=1.)) == (True, '')
    assert rule.update(dict(accuracy=0.8, f1=1.)) == (False, 'until')

def test_the_first_stage_is_never_undone():
    assert StopRule('accuracy', rollback=0., kept=0.9).update(dict(accuracy=0.1), may_roll_back=False)[0] is False

@pytest.mark.parametrize('bad', [NAN, float('inf'), None])
@pytest.mark.parametrize('name', ['accuracy', 'valid_loss'])
def test_no_number_is_the_worst_value(bad, name):
    assert [back for back,_ in stops([0.5, bad, 0.5], name, rollback=0.5)] == [False, True, False]
    assert [why for _,why in stops([0.5, bad], name, patience=1)] == ['', 'patience']
    assert [why for _,why in stops([bad, 0.5, 0.5], name, patience=2)] == ['', '', ''], "any number is better"

def test_no_number_reaches_no_goal():
    assert stops([NAN], until='accuracy>=0')[0] == (False, '') and stops([NAN], 'valid_loss', until='valid_loss<=9')[0] == (False, '')

@pytest.mark.parametrize('kwargs,error', [(dict(patience=0), ValueError), (dict(patience=1.5), ValueError), (dict(budget=0), ValueError), (dict(budget='1h'), TypeError),
                                          (dict(rollback=-1), ValueError), (dict(until='nonsense'), ValueError)])
def test_bad_rules(kwargs, error):
    with pytest.raises(error, match=f'{next(iter(kwargs))}='): StopRule('accuracy', **kwargs)


# -- the loop -------------------------------------------------------------------------------------------------------------------------------------

def run(values, cycles=None, **kwargs):
    "The calls in order, and why it stopped"
    calls = []
    def train(cycle):
        calls.append(('train', cycle))
        return {'accuracy': values[cycle]}
    def snapshot():
        calls.append(('snapshot',))
        return len(calls)
    why = run_stages(len(values)-1 if cycles is None else cycles, train, StopRule('accuracy', names=('accuracy',), **kwargs), snapshot,
                     lambda state: calls.append(('restore', state)), lambda *args: calls.append(('after', args[0], args[2], args[3])))
    return calls, why

def test_order():
    calls, why = run([0.1, 0.2, 0.3])
    assert why == 'cycles done'
    assert calls == [('train', 0), ('after', 0, False, ''), ('train', 1), ('after', 1, False, ''), ('train', 2), ('after', 2, False, 'cycles done')]

def test_order_with_rollback():
    calls, why = run([0.5, 0.1, 0.6], rollback=0.1)
    assert calls == [('train', 0), ('after', 0, False, ''), ('snapshot',), ('train', 1), ('restore', 3), ('after', 1, True, ''),
                     ('snapshot',), ('train', 2), ('after', 2, False, 'cycles done')]

def test_nothing_is_put_back_before_the_first_cycle():
    calls, _ = run([0.1, 0.9], rollback=0., kept=0.9)
    assert ('after', 0, False, '') in calls and not any(c[0] == 'restore' for c in calls)

def test_the_time_of_each_stage_counts(monkeypatch):
    clock, rule = iter([10., 11., 20., 21.5, 30., 31.]), StopRule('accuracy', budget=2.5)
    monkeypatch.setattr(stages.time, 'perf_counter', lambda: next(clock))
    assert run_stages(5, lambda cycle: {'accuracy': 0.5}, rule) == 'budget' and rule.seconds == 2.5

def test_no_cycles(): assert run([0.5], 0) == ([('train', 0), ('after', 0, False, 'cycles done')], 'cycles done')

def test_it_stops_when_it_is_enough():
    calls, why = run([0.1, 0.9, 0.95], until='accuracy>=0.9')
    assert why == 'until' and calls[-1] == ('after', 1, False, 'until')

def test_reasons_come_before_the_end_of_cycles(): assert run([0.1, 0.9], until='accuracy>=0.9')[1] == 'until'

def test_an_exception_passes_through():
    def broken(cycle): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_stages(2, broken, StopRule('accuracy'))
