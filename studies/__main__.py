"""The study's commands: `python -m studies run`, `report`, `agree` and `transfer`, from the top of the repository."""
import argparse
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent


def arguments():
    p = argparse.ArgumentParser(prog='python -m studies', description=__doc__)
    commands = p.add_subparsers(dest='command', required=True)

    def command(name, text): return commands.add_parser(name, help=text, description=text)

    run = command('run', "Run the comparisons of comparisons.ini, as far as the records don't hold their results, "
                  "and report all of them.")
    report = command('report', "Make the report from the records; nothing is trained.")
    agree = command('agree', "Compare the maps of runs with those of a reference network on the same test images.")
    agree.add_argument('reference', type=Path, help="folder of a finished run, such as a ViT's")
    transfer = command('transfer', "Teach finished runs a second task: how well do they learn it, and what do they "
                       "keep of the first?")
    transfer.add_argument('--task', required=True, help="the second task: a [data:NAME] section")
    transfer.add_argument('--steps', type=int, default=200, help="optimizer steps of the second task")
    for c,name in ((agree, 'agreement'), (transfer, 'transfer')):
        c.add_argument('runs', nargs='+', type=Path,
                       help="folders of finished runs; that of a comparison stands for all of its runs")
        c.add_argument('--out', type=Path, default=HERE/'results'/f'{name}.jsonl', help="the record, JSON lines")
    for c in (run, report, transfer):
        c.add_argument('--settings', type=Path, default=HERE/'settings.ini',
                       help="settings file, with comparisons.ini beside it (default: the study's)")
    for c in (run, report):
        c.add_argument('--records', type=Path, default=HERE/'results'/'study',
                       help="where the records are, and the report")
    run.add_argument('names', nargs='*', help="names of sections of comparisons.ini (default: all)")
    run.add_argument('--out', type=Path, default=Path('runs/study'), help="where the runs are")
    run.add_argument('--jobs', type=int, help="runs at the same time, one thread each (default: one a core)")
    for c in (run, agree, transfer):
        c.add_argument('--data', type=Path, default=Path('data'), help="folder for data sets")
    return p.parse_args()


def report(args):
    from studies.report import study_report
    print('report', study_report(args.records, args.settings))


def run(args):
    from studies.study import run_study
    run_study(args.names, args.settings, args.records, args.out, args.data, args.jobs)
    report(args)


def agree(args):
    from studies.agreement import agreement, agreement_table, agreement_words
    from studies.tables import markdown
    lines = agreement(args.reference, args.runs, args.out, args.data, print)
    print('', markdown(agreement_table(lines), 2), '', agreement_words(lines), '', f'record   {args.out}', sep='\n')


def transfer(args):
    from studies.tables import markdown
    from studies.transfer import second_table, second_task
    lines = second_task(args.runs, args.task, args.out, args.steps, args.settings, args.data, print)
    print('', markdown(second_table(lines), 1), '', f'record   {args.out}', sep='\n')


def main():
    args = arguments()
    warnings.filterwarnings('ignore', category=FutureWarning)
    try: dict(run=run, report=report, agree=agree, transfer=transfer)[args.command](args)
    except KeyboardInterrupt: sys.exit("stopped; the same command goes on from here")
    except (ValueError, OSError) as e: sys.exit(f'studies: {e}')


if __name__ == '__main__': main()
