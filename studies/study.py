"""Comparisons that belong together: the list is fixed in `settings.ini` before anything runs, and is reported whole."""

import shutil
from pathlib import Path

from proxy_attention.core import check_choice, check_number
from proxy_attention.lab.compare.comparison import compare
from proxy_attention.lab.config.problems import SettingsError
from proxy_attention.lab.config.file import SettingsFile, kinds
from proxy_attention.lab.config.settings import load_experiment
from proxy_attention.lab.runs.folder import check_folder, check_free
from proxy_attention.lab.runs.state import is_run

def comparisons(
    settings=None, # Settings file; None: the working directory's, else the package's
) -> dict: # Name → `ComparisonConfig`
    "The comparisons that a settings file lists, in its order, every value of theirs and of their experiments checked"
    file = SettingsFile(settings)
    if file.problems: raise SettingsError(file.problems)
    out = {name: kinds['comparison'](**values) for name,values in file.raw['comparison'].items()}
    for c in out.values(): load_experiment(c.experiment, settings, c.overrides)
    return out

report_sign = "Made from the records in this folder by `python -m studies report`" # Stands in every report of ours

def check_report(
    records, # Folder of the records
) -> Path: # Its README.md
    "An error if the report's place is taken by something else"
    file = Path(records)/'README.md'
    if file.exists() and report_sign not in file.read_text(encoding='utf-8', errors='replace'):
        raise ValueError(f"{str(file)!r} is there already and not a report of ours; it is left as it is. "
                         "Give another folder for the records.")
    return file

def run_study(
    names=None, # Names of comparisons; None: all
    settings=None, # Settings file; None: the working directory's, else the package's
    records='results/study', # Folder of the records
    out='runs/study', # Folder of the runs
    data='data', # Folder for data sets
    jobs:int|None=None, # Processes; None: one a core
    say=print, # What is said goes there
) -> list: # Files of the records
    "Run the comparisons of the settings file one after the other, as far as their records don't hold the results yet"
    listed,made = comparisons(settings), []
    for name in names or (): check_choice('names', name, listed)
    if jobs is not None: check_number('jobs', jobs, 1, whole=True)
    check_report(records)
    for name in names or listed: # Everything that is in the way is said before anything runs
        check_folder(Path(out)/name, 'compare')
        check_free(Path(records)/f'{name}.jsonl', 'compare')
    for name in names or listed:
        c,record = listed[name], Path(records)/f'{name}.jsonl'
        say(f"{name}: {c.experiment}{f', {c.change}' if c.change else ''}")
        compare(c.experiment, c.names, c.seed_list, settings, Path(out)/name, c.overrides, data, jobs, record=record,
                reuse=[f for f in Path(records).glob('*.jsonl') if f != record],
                command=f'python -m studies run {name}', say=say)
        for run in Path(out, name).glob('arms/*/*'):
            # The audit has seen the copies: thousands of small files a comparison
            if is_run(run): shutil.rmtree(run/'proxies', ignore_errors=True)
        made.append(record)
    return made
