"""Search AdaSCALE's k1, k2, λ and percentiles together: ``python examples/search_all.py DATA NETWORK [--out DIR]``.

DATA is as ``imagenet_data.py`` has made it, NETWORK as for ``openood-adascale evaluate``. Features that ``evaluate`` has
cached are used: the 864 candidates need no forward pass.
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml

from openood_adascale import AdaSCALE, Benchmark, evaluate
from openood_adascale.data.labels import with_classes
from openood_adascale.evaluation.own_images import ImageReader
from openood_adascale.report.tables import save_csv

SWEEP = {
    "percentile_list": AdaSCALE.default_sweep["percentile_list"],
    "k1_list": [1, 5],
    "k2_list": [5, 10, 20, 50, 80, 100],
    "lmbda_list": [1, 10],
}


def benchmark_of(options, reading):
    """Return the loaders of an ``imagenet.yml``."""
    near, far = (
        {name: reading.loader(name, reading.files(name, where)) for name, where in options[split].items()}
        for split in ("near", "far")
    )
    files = {name: reading.files(name, options[name]) for name in ("id", "val", "ood_val")}
    # As the command does, so that its cached features are found.
    files["id"] = with_classes(files["id"], reading.class_count(files["id"]), reading.loaded.classes)
    test, val, ood_val = (reading.loader(name, found) for name, found in files.items())
    return Benchmark(test, near, far, val=val, ood_val=ood_val)


def main(words=None):
    """Run the command line and return a table of the settings found, with FPR@95 and AUROC of each OOD set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("network", metavar="NETWORK")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="DIR", help="tables in OpenOOD's format")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    chosen = parser.parse_args(words)
    options = yaml.safe_load((chosen.data / "imagenet.yml").read_text(encoding="utf-8"))
    words = {"batch_size": options["batch_size"], "classes": options["classes"], **vars(chosen)}
    reading = ImageReader(words, print)  # on a GPU, where there is one, as the command
    benchmark = benchmark_of(options, reading)
    rows = {}
    for variant in "AL":
        for what, sweep in (("percentiles", None), ("all", SWEEP)):
            detector = AdaSCALE(reading.loaded.network, variant=variant)
            result = evaluate(
                detector, benchmark, search=True, sweep=sweep, cache_dir=options["cache_dir"], progress=False
            )
            found = detector.settings
            rows[f"AdaSCALE-{variant}, {what}"] = {
                "percentile": "{:g}-{:g}".format(*found.percentile),
                "k1": found.k1,
                "k2": found.k2,
                "lmbda": found.lmbda,
                "val": result.search_results["auroc"].max(),
                **{
                    name: "{:.1f}/{:.1f}".format(*result.table.loc[name, ["FPR@95", "AUROC"]])
                    for split in ("near", "far")
                    for name in options[split]
                },
            }
            if chosen.out is not None:
                save_csv(result.table, chosen.out / "ood" / f"adascale_{variant.lower()}_{what}.csv")
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(table.to_string(float_format=lambda value: f"{value:.1f}"))
    return table


if __name__ == "__main__":
    main()
