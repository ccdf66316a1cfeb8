"""The command line of compare.py: flags of its own; all others are train.py's and go to every run."""

import argparse
from collections.abc import Sequence

from utils.arguments import count_up_to

EXAMPLES = """
  python compare.py configs/compare/bins.yaml --data data.yaml
  python compare.py --losses gfl vfl mine.yaml --seeds 5 --data data.yaml --epochs 40
  python compare.py --from runs/train/a runs/train/b --baseline gfl
"""


def compare_parser() -> argparse.ArgumentParser:
    """Flags of compare.py itself, not completed from prefixes: ``--seed`` must not become --seeds."""
    parser = argparse.ArgumentParser(
        prog="compare.py",
        usage="python compare.py [YAML] [flags] [any flag of train.py]",
        description="Which loss is better on these pictures? Several losses, the same seeds, last averaged "
        "weights, differences with intervals. The same command goes on where it was interrupted.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--losses", nargs="+", metavar="YAML", help="names in configs/losses or files; each is trained")
    add(
        "--baseline",
        metavar="NAME",
        help="the loss all others are compared with (default: the first; --from: gfl if it is there)",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="how many (5 = seeds 0 to 4), or which, if several are given (default 5)",
    )
    add(
        "--jobs", type=count_up_to(1024), metavar="N", help="trainings at a time (default: one a GPU, else 1)"
    )
    add(
        "--from",
        nargs="+",
        dest="finished",
        metavar="DIR",
        help="report on finished runs, or folders of them",
    )
    add("--project", default="runs/compare", metavar="DIR", help="default %(default)s")
    add(
        "--name",
        metavar="NAME",
        help="results go to project/name (default: that of the YAML, else the losses)",
    )
    return parser


def parse_comparison(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of compare.py, with ``yaml`` (None if none is given), and those for train.py, unread.

    A YAML stands first: among flags that are not known here a word cannot be told from a flag's value.
    """
    yaml, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    args, flags = compare_parser().parse_known_args(rest)
    args.yaml = yaml
    return args, flags
