"""Tables in Markdown, as the generated parts of README and docs have them."""

from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from lib.analysis import statistics


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each row."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def estimates(
    data: pd.DataFrame, index: Sequence[str], columns: str, value: str = "value", bold: Collection[str] = ()
) -> str:
    """Numbers with their intervals (columns low, high) as a table: a row per index and n, a column per entry of
    `columns`; those named in `bold` are bold where the whole interval lies above 1/2."""
    keys, cells = [*index, "n"], []
    for row in data.to_dict("records"):
        text = statistics.in_figures(row[value], row["low"], row["high"])
        cells.append(f"**{text}**" if row[columns] in bold and row["low"] > 0.5 else text)
    wide = data.assign(cell=cells).pivot(index=keys, columns=columns, values="cell")
    order = pd.MultiIndex.from_frame(data[keys].drop_duplicates())
    wide = wide.loc[order, list(dict.fromkeys(data[columns]))].fillna("")
    rows = zip(wide.index, wide.to_numpy(), strict=True)
    return table([*keys, *wide.columns], [[*map(str, key), *row] for key, row in rows])


def code(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]
