"""Tables as files of comma-separated values."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from scratchgen.training.checkpoint import whole_file


def write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[float | None]]) -> None:
    """Write a table as a whole: whole numbers as they are, others with all their digits.

    Args:
        path: the .csv file.
        names: of the columns, with their units.
        rows: of numbers; None leaves its cell empty.
    """
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    for row in rows:
        table.writerow([v if v is None or isinstance(v, int) else repr(float(v)) for v in row])
    with whole_file(path, "w") as file:
        file.write(text.getvalue())
