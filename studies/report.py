"""The report of the study: what it asked with the numbers that answer it, and all comparisons. From records alone."""

from pathlib import Path

from proxy_attention.files import write_atomic
from proxy_attention.lab.metrics.text import points
from studies.study import check_report, comparisons, report_sign
from studies.tables import (arm_table, by_seed, draw_gaps, gap_closed, gap_table, has_gap, in_percent,
                            in_points, least_gap, markdown, read_study, set_against, verdict_counts)

def judged(
    d, # `Difference`, or None: not run
    least:float, # What its mean has to reach
) -> str:
    "met, met on average, or missed by how much"
    if d is None: return 'not run'
    if d.mean < least: return f"missed by {points(least - d.mean).lstrip('+')}"
    if d.low >= least: return 'met'
    return f"met on average; the interval reaches {points(least - d.low).lstrip('+')} below"

def beats(
    d, # `Difference`, or None: not run
) -> str:
    "Is the interval of a difference above 0?"
    return 'not run' if d is None else 'yes' if d.low > 0 else 'no' if d.high < 0 else 'not shown'

asked_against = {'digits_95': ('random_place', 'proposal', 'jtt_tuned', 'masktune_tuned'),
                 'holdout_texture': ('masktune_tuned',), 'holdout_position': ('masktune_tuned',)}

def _against(results, name, other, arm='default'):
    return set_against(by_seed(results.get(name, []), arm), by_seed(results.get(name, []), other))

def answers(
    listed, # Name → `ComparisonConfig`
    results, # Of `read_study`
) -> list: # Rows, the first the heading
    "A row a question about the library's default: what was found, and whether that is enough"
    rows = [['the default', 'found', '']]
    for n in (n for n,c in listed.items() if c.reference):
        have,plain,d = results.get(n, []), results.get(listed[n].reference, []), _against(results, n, 'erm')
        found = '' if d is None else f"{in_percent(gap_closed(have, plain, 'default'))}; {in_points(d)}"
        if d is not None and not has_gap(have, plain):
            found = f"no gap: plain training loses less than {100*least_gap:.0f} points"
        rows.append([f"closes a part of the gap on `{n}`", found, beats(d)])
    for n in dict.fromkeys(c.reference for c in listed.values() if c.reference):
        d = _against(results, n, 'erm')
        rows.append([f"loses at most half a point on `{n}`", in_points(d), judged(d, -.005)])
    for n,others in asked_against.items():
        for o in others: rows.append([f"beats `{o}` on `{n}`", in_points(d := _against(results, n, o)), beats(d)])
    return rows

less_data = ((120, 'images_120'), (1200, 'steps_180'))
fewer_steps = ((180, 'steps_180'), (480, 'digits_95'))

def _section(name, c, have):
    "What is said of a comparison"
    arms = dict.fromkeys(['erm', *c.names])
    done = sum(o['arm'] in arms for o in have)
    clean = sum(o['audit_ok'] for o in have)
    steps = f", {have[0]['steps']} optimizer steps each; audits: {clean} of {len(have)} clean" if have else ''
    parts = [f"## {name}", f"`{c.experiment}`{f', {c.change}' if c.change else ''}; seeds {c.first_seed} to "
             f"{c.first_seed + c.seeds - 1}; {done} of {len(arms)*c.seeds} runs done{steps}."]
    if told := verdict_counts(have): parts.append(f"Verdicts: {told}.")
    return parts + [markdown(arm_table(have))] if have else parts

def study_report(
    records='results/study', # Folder of the records; the report goes there too: README.md and the drawings
    settings=None, # Settings file, with comparisons.ini beside it; None: the working directory's, else the package's
) -> Path: # README.md
    "Answers, tables and drawings of all comparisons, from their records"
    listed,results,out,file = comparisons(settings), read_study(records), Path(records), check_report(records)
    parts = ["# Results of the study", f"{report_sign}; don't edit. Test accuracy: mean, lowest and highest of the "
             "seeds; differences in percentage points, paired by seed, with 95% t intervals, not adjusted for the "
             "number of questions. Few seeds make them wide: \"not shown\" is no proof that there is nothing. All arms "
             "of a comparison share split, initial weights by seed and number of optimizer steps; *steps* says what "
             "scouts add to them, and counts neither probes nor maps. Seconds are in the records, and say little: the "
             "machine did other things too."]
    if len(rows := gap_table(listed, results)) > 1:
        draw_gaps(listed, results, out/'gaps.svg')
        parts += ["## Questions", markdown(answers(listed, results), 3), "## The gap closed", "0% is plain training "
                  "with the shortcut, 100% plain training where a cue on these images tells nothing.",
                  "![gaps](gaps.svg)", markdown(rows, 2)]
    for name,c in listed.items(): parts += _section(name, c, results.get(name, []))
    write_atomic(file, '\n\n'.join(parts) + '\n')
    return file
