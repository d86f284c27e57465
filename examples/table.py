"""Print results of ``openood-adascale evaluate`` as Markdown tables, and draw them as bars.

``python examples/table.py results/lite0 results/lite1 [--picture bars.png]``; of several runs also the mean. With
``--against optfs``, the difference between AdaSCALE-A and OptFS with its bootstrap interval over images.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from openood_adascale import metrics
from openood_adascale.detectors.registry import METHODS

MEANS = ("nearood", "farood")
MEASURES = ("FPR@95", "AUROC")
RESAMPLES = 300


def read(run):
    """Return a table of a run's folder: rows (method, metric), columns the OOD sets and their ``mean``."""
    rows = {}
    for name, method in METHODS.items():
        file = Path(run) / "ood" / f"{name}.csv"
        if file.is_file():
            table = pd.read_csv(file, index_col=0).drop(index=list(MEANS))[list(MEASURES)]
            table.loc["mean"] = table.mean()
            rows[method.label] = table.T
    if not rows:
        raise SystemExit(f"{run}: no tables in {Path(run) / 'ood'}; is it what --output named?")
    return pd.concat(rows)


def markdown(table):
    """Return a Markdown table with FPR@95 / AUROC in each cell, the best of each column in bold."""
    methods = list(table.index.get_level_values(0).unique())
    shown = table.round(1)
    fpr, auroc = (shown.xs(measure, level=1) for measure in MEASURES)
    lines = ["| method | " + " | ".join(shown.columns) + " |", "|---" * (len(shown.columns) + 1) + "|"]
    for method in methods:
        cells = []
        for column in shown.columns:
            pair = (
                (fpr.loc[method, column], fpr[column].min()),
                (auroc.loc[method, column], auroc[column].max()),
            )
            cells.append(
                " / ".join(f"**{value:.1f}**" if value == best else f"{value:.1f}" for value, best in pair)
            )
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_images(run):
    """Return the table of images of a run: images.parquet, or images.csv without pyarrow."""
    parquet = Path(run) / "images.parquet"
    return pd.read_parquet(parquet) if parquet.is_file() else pd.read_csv(Path(run) / "images.csv")


def difference(runs, one, other):
    """Return the difference of two methods in FPR@95 and AUROC, mean over OOD sets and runs.

    Returns:
        (3, 2): as measured, and the ends of the 95 % interval of a bootstrap over the images of each set, with the same
        resamples for all runs.

    Raises:
        SystemExit: If the runs are not of the same images, or lack a method.
    """
    tables = [read_images(run) for run in runs]
    if any(not table[["set", "path"]].equals(tables[0][["set", "path"]]) for table in tables):
        raise SystemExit("--against: runs of the same images are needed")
    columns = [f"score_{name}" for name in (one, other)]
    if lacking := [name for name in columns if any(name not in table for table in tables)]:
        raise SystemExit(f"--against: {', '.join(lacking)}: no such column in the table of images")
    scores = np.stack([table[columns].to_numpy() for table in tables])  # (runs, images, 2)
    places = {name: np.flatnonzero(tables[0]["set"] == name) for name in tables[0]["set"].unique()}

    def measured(chosen):
        found = [
            metrics.fpr95_auroc(run[chosen["id"], column], run[rows, column])
            for run in scores
            for name, rows in chosen.items()
            if name != "id"
            for column in (0, 1)
        ]
        pairs = np.reshape(found, (-1, 2, 2))
        return (pairs[:, 0] - pairs[:, 1]).mean(axis=0)

    generator = np.random.default_rng(0)
    drawn = [
        measured({name: generator.choice(rows, len(rows)) for name, rows in places.items()})
        for _ in range(RESAMPLES)
    ]
    return np.stack([measured(places), *np.quantile(drawn, [0.025, 0.975], axis=0)])


def picture(table, file):
    """Draw the FPR@95 of every method on each OOD set and their mean as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fpr = table.xs("FPR@95", level=1)
    greys = ["#d9d9d9", "#bdbdbd", "#969696", "#737373", "#525252", "#252525"]
    ours = ["#d95f02", "#7570b3"]
    others = [name for name in fpr.index if not name.startswith("AdaSCALE")]
    colours = dict(zip(others, greys, strict=False)) | dict(
        zip([name for name in fpr.index if name not in others], ours, strict=False)
    )
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.85 / len(fpr)
    for place, name in enumerate(fpr.index):
        at = [column + (place - (len(fpr) - 1) / 2) * width for column in range(len(fpr.columns))]
        axes.bar(at, fpr.loc[name], width, label=name, color=colours[name])
    axes.set_xticks(range(len(fpr.columns)), fpr.columns)
    axes.set_ylabel("FPR@95 in %, lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(words=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="DIR")
    parser.add_argument("--picture", metavar="FILE.png", help="of the runs' mean")
    parser.add_argument("--against", metavar="METHOD", help="compare AdaSCALE-A with it, e.g. optfs")
    chosen = parser.parse_args(words)
    tables = {run: read(run) for run in chosen.runs}
    together = pd.concat(tables)
    if len(tables) > 1:
        tables["mean of all runs"] = together.groupby(level=[1, 2], sort=False).mean()
    for name, table in tables.items():
        print(f"\n{name}\n\n{markdown(table)}")
    if chosen.against is not None:
        groups = [[run] for run in chosen.runs]
        for runs in [*groups, chosen.runs] if len(groups) > 1 else groups:
            found = difference(runs, "adascale", chosen.against)
            words = [
                f"{measure} {middle:+.1f} ({low:+.1f} to {high:+.1f})"
                for measure, (middle, low, high) in zip(MEASURES, found.T, strict=True)
            ]
            print(
                f"\n{', '.join(runs)}: AdaSCALE-A minus {METHODS[chosen.against].label}: {', '.join(words)}"
            )
    if chosen.picture is not None:
        picture(list(tables.values())[-1], chosen.picture)


if __name__ == "__main__":
    main()
