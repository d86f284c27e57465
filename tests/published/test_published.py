"""The published figures: complete, each with its source, as the paper and the authors' files have them."""

from __future__ import annotations

import numpy as np

from openood_adascale import published


def test_results_have_percentages_and_a_source_in_every_row():
    table = published.results()
    assert list(table.columns) == [
        "dataset", "network", "method", "scheme", "ood_set", "fpr95", "auroc", "source", "note",
    ]  # fmt: skip
    assert len(table) == 382
    assert table[["fpr95", "auroc"]].apply(lambda column: column.between(0, 100)).all(axis=None)
    assert (table["source"].str.len() > 0).all()
    assert set(table["scheme"]) == {"ood", "fsood"}
    keys = ["dataset", "network", "method", "scheme", "ood_set", "source"]
    assert not table.duplicated(keys).any()


def test_results_hold_all_of_table_2():
    table = published.results()
    table = table[table["source"].str.startswith("paper Table 2")]
    assert set(table["ood_set"]) == {"near-average", "far-average"}
    # 9 rivals and 2 variants, 8 networks and their mean, near and far.
    assert len(table) == 11 * 9 * 2
    mean = table[table["network"] != "average"].groupby(["method", "ood_set"])[["fpr95", "auroc"]].mean()
    told = table[table["network"] == "average"].set_index(["method", "ood_set"])[["fpr95", "auroc"]]
    ours = ["AdaSCALE-A", "AdaSCALE-L"]
    assert np.abs(mean.loc[ours] - told.loc[ours].reindex(mean.loc[ours].index)).max(axis=None) < 0.02


def test_hyperparameters_are_those_of_the_paper():
    table = published.hyperparameters().set_index(["variant", "dataset", "network"])
    assert len(table) == 24
    regnet = table.loc[("A", "imagenet", "regnet-y-16gf")]
    assert (regnet["p_min"], regnet["p_max"], regnet["k1_percent"], regnet["k2_percent"]) == (60, 90, 1, 50)
    assert (table["p_min"] < table["p_max"]).all()


def test_results_note_deviations_of_the_authors_files():
    table = published.results()
    noted = table[table["note"] != ""]
    assert noted["source"].str.startswith("the authors'").all()
    regnet = noted[(noted["network"] == "regnet-y-16gf")]
    assert set(regnet["method"]) == {"AdaSCALE-A"}
    assert regnet["note"].str.contains("k2 = 30 %").all()
    assert "resnet50" not in set(noted["network"])
    assert noted[noted["dataset"] == "cifar10"]["note"].str.contains("list no settings").all()
