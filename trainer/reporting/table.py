"""Result tables, for a terminal, a pipe and Markdown."""

import sys

from rich.console import Console
from rich.table import Table as RichTable


class Table:
    """Text cells by row and column, in the order in which rows and columns first appear."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, dict[str, str]] = {}

    def put(self, row: str, column: str, cell: str) -> None:
        """Set a cell."""
        self.rows.setdefault(row, {})[column] = cell

    @property
    def columns(self) -> list[str]:
        """All columns."""
        return list(dict.fromkeys(column for cells in self.rows.values() for column in cells))

    def markdown(self) -> str:
        """The title and the table as Markdown."""
        header = ["", *self.columns]
        lines = [header, ["---", *["---:"] * len(self.columns)]]
        lines += self._body()
        return "\n".join([self.title, "", *("| " + " | ".join(line) + " |" for line in lines), ""])

    def show(self) -> None:
        """Print the table: with borders in a terminal, as aligned columns elsewhere."""
        if sys.stdout.isatty():
            drawn = RichTable("", title=self.title, title_justify="left")
            for column in self.columns:
                drawn.add_column(column, justify="right")
            for line in self._body():
                drawn.add_row(*line)
            Console().print(drawn)
            return
        lines = [["", *self.columns], *self._body()]
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        print(f"\n{self.title}")
        for first, *rest in lines:
            aligned = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            print("  ".join([first.ljust(widths[0]), *aligned]), flush=True)

    def _body(self) -> list[list[str]]:
        columns = self.columns
        return [[row, *(cells.get(c, "–") for c in columns)] for row, cells in self.rows.items()]
