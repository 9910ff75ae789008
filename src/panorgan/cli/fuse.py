"""`panorgan fuse`: fuse partial labels and pseudo-labels."""

import argparse
from textwrap import fill
from typing import Any

from panorgan.cli.options import class_table, path, text
from panorgan.cli.places import check_places
from panorgan.config.labels import load_labels
from panorgan.config.registry import ORDERS, REFERENCE

_WIDTH = 2 + max(map(len, ORDERS))
_ORDERS_HELP = "\n".join(
    fill(order.help, 100, initial_indent=f"  {name:{_WIDTH}}", subsequent_indent=" " * (_WIDTH + 2))
    for name, order in ORDERS.items()
)

_FUSE_HELP = f"""\
Make a full label out of a partial label, a tumour mask and an organ pseudo-label. Any of them may
be missing. Give three files, or three folders of CASE.nii.gz: then the cases are those of all
folders together, and one without a partial label is unlabelled.

What is put where:
  - The partial label counts where its class is annotated (--annotated). Voxels of other classes in
    it are set to background, and reported.
  - The tumour mask puts tumour where the tumour is unknown: not among --annotated. It holds 0 and
    the value of --tumour-value alone. Anything else in it is refused, never guessed.
  - The organ pseudo-label fills what is still background, with organs that are unknown. Tumour in
    it is not used; the class table's value to ignore stays in the result.

--order says who wins where the tumour mask meets an annotated organ:
{_ORDERS_HELP}

--annotated TABLE.tsv takes a case table, as `panorgan init` writes it. It has a line for each case,
found by its name. What annotators looked for is said by its column annotated, else by the rule of
its source in the shipped config/sources.yaml, else (training cases) by the values that occur in
the partial label. A class that they looked for and that is missing is absent: it is never added.
With a column tumour_scope they looked for tumours in these organs only: pieces of the tumour mask
are added elsewhere, if they neither overlap nor touch an organ of the scope or an annotated tumour.

Values of a source map: 0 background, 1 ground truth, 2 tumour mask, 3 organ pseudo-label, 4
ignored. All is written with the geometry of the partial label (else of the tumour mask, else of the
organ pseudo-label); all inputs must be on one grid. If anything is wrong nothing is written, and
nothing is ever replaced."""


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "fuse",
        parents=[class_table()],
        help="fuse partial labels and pseudo-labels",
        description=_FUSE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--partial", type=path, help="partial label, or a folder of them")
    parser.add_argument(
        "--annotated",
        type=text,
        default="none",
        metavar="CLASSES",
        help="classes annotated in the partial labels, by name or value, such as 1,spleen; or a "
        "case table, TABLE.tsv (default: none)",
    )
    parser.add_argument("--tumour", type=path, help="tumour mask, or a folder of them")
    parser.add_argument(
        "--tumour-value",
        type=text,
        default="1",
        metavar="VALUE",
        help="value of tumour in the mask, or a class's name: `tumour` is its value in full label "
        "maps (default: 1)",
    )
    parser.add_argument("--organs", type=path, help="organ pseudo-label, or a folder of them")
    parser.add_argument("-o", "--output", type=path, required=True, help="a new file, or a folder")
    parser.add_argument("--source-map", type=path, help="where to write what each voxel is from")
    parser.add_argument(
        "--order",
        default=REFERENCE,
        choices=list(ORDERS),
        help="who wins (default: %(default)s)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit code."""
    from panorgan.fusing.fusion import fuse_paths

    check_places(options.output, options.source_map)
    fused = fuse_paths(
        partial=options.partial,
        annotated=options.annotated,
        tumour=options.tumour,
        tumour_value=options.tumour_value,
        organs=options.organs,
        out=options.output,
        source_map=options.source_map,
        labels=load_labels(options.labels),
        order=options.order,
    )
    for case in fused:
        for speck in case.specks:
            print(f"{case.case}: {speck['ml']:.3f} ml of {speck['name']} left out: not annotated")
        if case.outside_ml:
            why = "not where it may be (--order, tumour_scope)"
            print(f"{case.case}: {case.outside_ml:.3f} ml of the tumour mask left out: {why}")
    print(f"{options.output}: {len(fused)} fused")
    return 0
