"""Run directories to one self-contained HTML page: `python analysis/report.py DIR [DIR ...] [-o FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: the packages lie beside this directory
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from analysis.audit.claim_models import verdicts_in_words
from analysis.load import load
from analysis.page.export import write_charts, write_tables
from analysis.page.page import contents, render
from analysis.recommend import MAX_PPL_INCREASE
from pipeline.results import PlaceError, RunStore, RunUnreadableError, is_remote, placed

FORMS = ("png", "svg", "csv")
"""What can be written beside the page: every chart as a picture, every table whole."""


@dataclass(frozen=True)
class Report:
    """Where a report lies, and the audit's verdicts in words; none where no audit was asked for."""

    place: str
    verdicts: list[str]

    def __str__(self) -> str:
        """The verdicts; the place is the last line."""
        return "\n".join([*self.verdicts, self.place])


def write_report(
    directories: Sequence[str],
    output: str | None = None,
    tolerance: float = MAX_PPL_INCREASE,
    folders: Mapping[str, str] | None = None,
    *,
    audit: bool = False,
) -> str:
    """``make_report``; returns where it lies."""
    return make_report(directories, output, tolerance, folders, audit=audit).place


def make_report(
    directories: Sequence[str],
    output: str | None = None,
    tolerance: float = MAX_PPL_INCREASE,
    folders: Mapping[str, str] | None = None,
    *,
    audit: bool = False,
) -> Report:
    """Write the report of one or several run directories.

    ``tolerance``: the increase of PPL that a recommended setting may cost, as a share. ``folders``: where to
    write ``FORMS``, by form. ``audit``: judge the reports' claims by these rows. Default place:
    ``report.html`` in the first directory, which may be an s3:// URL. Raises RunUnreadableError where a
    directory is not a run, and OSError where a file cannot be written.
    """
    place = None if output is None else local_file(output)
    places = {form: local_file(folder) for form, folder in (folders or {}).items()}
    results = load(directories)
    shown = contents(results, tolerance, with_audit=audit)
    page = render(shown).encode()
    verdicts = verdicts_in_words(shown.audited)
    for form, folder in places.items():
        if form == "csv":
            write_tables(shown.tables, folder)
        else:
            write_charts((chart for panels in shown.charts.values() for chart in panels), folder, form)
    if place is not None:
        Path(place).write_bytes(page)
        return Report(place, verdicts)
    store = RunStore(results.runs[0].directory)
    store.put("report.html", page, overwrite=True)
    return Report(f"{store.directory}/report.html", verdicts)


def local_file(text: str) -> str:
    """A path of this machine to write to, with ``~`` as the home directory.

    Raises PlaceError for a URL of an object store.
    """
    place = placed(text)
    if is_remote(place):
        raise PlaceError(
            f"{text}: what is asked for here is written to this machine; give a path, and copy it there"
        )
    return place


def _share(text: str) -> float:
    """``1%`` or ``0.01`` as 0.01. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1; write 1% or 0.01")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 2 where a directory is not a run or the page cannot be written."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="Write one self-contained HTML report of kvsweep run directories."
    )

    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directory, local or s3://")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write the page (default: DIR/report.html)"
    )
    parser.add_argument(
        "--max-ppl-increase",
        type=_share,
        default=MAX_PPL_INCREASE,
        metavar="SHARE",
        dest="tolerance",
        help="what a recommended setting may cost, such as 1%% or 0.01 (default: 1%%)",
    )

    for form in FORMS:
        what = "table, whole" if form == "csv" else "chart"
        parser.add_argument(
            f"--{form}", metavar="DIR", help=f"also write every {what} as {form.upper()} into this folder"
        )
    parser.add_argument("--audit", action="store_true", help="judge what the reports claimed by these rows")
    arguments = parser.parse_args(argv)

    try:
        folders = {form: folder for form in FORMS if (folder := getattr(arguments, form))}
        print(
            make_report(
                arguments.directories, arguments.output, arguments.tolerance, folders, audit=arguments.audit
            )
        )
    except (RunUnreadableError, PlaceError, OSError) as error:
        print(f"report: {next(iter(str(error).splitlines()), '')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
