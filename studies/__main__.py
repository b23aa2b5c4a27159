"""The study's commands: `python -m studies run`, `report`, `transfer` and `agree`, from the top of the repository."""
import argparse
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent


def arguments():
    p = argparse.ArgumentParser(prog='python -m studies', description=__doc__)
    commands = p.add_subparsers(dest='command', required=True)

    def command(name, text, settings=True):
        c = commands.add_parser(name, help=text, description=text)
        if settings: c.add_argument('--settings', type=Path, default=HERE/'settings.ini', help="settings file (default: the study's)")
        c.add_argument('--data', type=Path, default=Path('data'), help="folder for data sets")
        return c

    run = command('run', "Run the comparisons that the settings list, as far as the records don't hold their results, and report all of them.")
    report = command('report', "Make the report from the records; nothing is trained.")
    for c in (run, report): c.add_argument('--records', type=Path, default=HERE/'results'/'study', help="where the records are, and the report")
    run.add_argument('names', nargs='*', help="names of [comparison:NAME] sections (default: all)")
    run.add_argument('--out', type=Path, default=Path('runs/study'), help="where the runs are")
    run.add_argument('--jobs', type=int, help="runs at the same time, one thread each (default: one a core)")

    transfer = command('transfer', "Teach finished runs a second task: how well do they learn it, and what do they keep of the first?")
    transfer.add_argument('runs', nargs='+', type=Path, help="folders of finished runs; that of a comparison stands for all of its runs")
    transfer.add_argument('--task', required=True, help="the second task: a [data:NAME] section")
    transfer.add_argument('--steps', type=int, default=200, help="optimizer steps of the second task")
    transfer.add_argument('--lr', type=float, help="largest learning rate (default: each run's own)")
    transfer.add_argument('--out', type=Path, help="the record, JSON lines (default: runs/second_NAME.jsonl)")

    agree = command('agree', "Compare the maps of runs with those of a reference network on the same test images.", settings=False)
    agree.add_argument('reference', type=Path, help="folder of a finished run, such as a ViT's")
    agree.add_argument('runs', nargs='+', type=Path, help="folders of finished runs; that of a comparison stands for all of its runs")
    agree.add_argument('--images', type=int, help="at most so many test images, evenly spaced (default: all)")
    agree.add_argument('--on', type=Path, metavar='RUN', help="use this run's test images (default: the reference's)")
    agree.add_argument('--method', help="saliency method for the runs (default: one that none of them erased by)")
    agree.add_argument('--out', type=Path, help="the record, JSON lines (default: runs/agreement_REFERENCE.jsonl)")
    return p.parse_args()


def report(args):
    from studies.report import study_report
    print('report', study_report(args.records, args.settings))


def run(args):
    from studies.study import run_study
    run_study(args.names, args.settings, args.records, args.out, args.data, args.jobs)
    report(args)


def transfer(args):
    from studies.transfer import default_out, second_task, second_text
    file = args.out or default_out(args.task)
    lines = second_task(args.runs, args.task, args.steps, args.lr, file, args.settings, args.data, print)
    print('', second_text(lines), '', f'record   {file}', sep='\n')


def agree(args):
    from studies.agreement import agreement, agreement_text, agreement_verdict, default_out
    file = args.out or default_out(args.reference)
    lines = agreement(args.reference, args.runs, file, args.images, args.on, args.method, args.data, print)
    print('', agreement_text(lines), '', *agreement_verdict(lines), '', f'record   {file}', sep='\n')


def main():
    args = arguments()
    warnings.filterwarnings('ignore', category=FutureWarning)
    try: dict(run=run, report=report, transfer=transfer, agree=agree)[args.command](args)
    except KeyboardInterrupt: sys.exit("stopped; the same command goes on from here")
    except (ValueError, OSError) as e: sys.exit(f'studies: {e}')


if __name__ == '__main__': main()
