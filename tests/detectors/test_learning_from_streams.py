"""Searches and evaluations of methods that learn from training images."""

import numpy as np
import pytest
import torch
from rivals import (
    passes,
)
from sklearn.metrics import roc_auc_score
from tiny import HEAD, make_images, make_loader

from openood_adascale import AdaSCALE
from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.learning import StreamingDetector
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.evaluation.benchmark import Benchmark
from openood_adascale.evaluation.evaluate import evaluate
from openood_adascale.evidence.sharing import forget

SWEEPS = {
    LTS: {"percentile_list": [70, 85, 95]},
    BFAct: {"percentile_list": [70, 95], "order_list": [1, 2]},
    OptFS: {
        "bins_list": [10, 100],
        "percentile_list": [[0.1, 99.9], [1, 99]],
        "score_list": ["vanilla", "energy"],
    },
}


@pytest.mark.parametrize("method", SWEEPS)
def test_a_search_is_one_pass_and_every_candidate_is_what_fit_gives(
    network, train_images, id_images, ood_images, method, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a gradient was asked for")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    detector, train = method(network), make_loader(train_images)
    learnt = {"learn_loader": train} if issubclass(method, StreamingDetector) else {}
    found = []
    count = passes(
        network,
        lambda: found.append(
            detector.search(make_loader(id_images), make_loader(ood_images), SWEEPS[method], **learnt)
        ),
    )
    assert count == 90 + (120 if issubclass(method, StreamingDetector) else 0)
    assert len(found[0].table) == np.prod([len(values) for values in SWEEPS[method].values()])
    truth = np.r_[np.ones(50), np.zeros(40)]
    for row in found[0].table.to_dict("records"):
        auroc = row.pop("auroc")
        alone = method(network, **row).fit(train)
        scores = torch.cat([alone.score(id_images), alone.score(ood_images)])
        assert auroc == pytest.approx(100 * roc_auc_score(truth, scores), abs=1e-6)
    assert found[0].auroc == found[0].table["auroc"].max()
    torch.testing.assert_close(
        detector.score(ood_images), method(network, found[0].settings).fit(train).score(ood_images)
    )


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_what_a_search_learns_from(network, train_images, id_images, ood_images, method):
    val, ood, train, sweep = (
        make_loader(id_images), make_loader(ood_images), make_loader(train_images), SWEEPS[method],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"learn_loader: None .*learn_from='val'"):
        method(network).search(val, ood, sweep)
    assert not network.calls
    from_val = method(network, learn_from="val")
    assert passes(network, lambda: from_val.search(val, ood, sweep)) == 90
    want = method(network, from_val.settings).fit(val)
    torch.testing.assert_close(from_val.score(ood_images), want.score(ood_images))
    fitted = method(network).fit(train)
    forget()
    # what fit learnt from is not looked at again, nor is the head looked for
    assert passes(network, lambda: fitted.search(val, ood, sweep)) == 90 - HEAD
    with pytest.raises(TypeError, match="learn_loader"):
        AdaSCALE(network).search(val, ood, learn_loader=train)


@pytest.mark.parametrize("method", [LTS, BFAct, OptFS])
def test_evaluate_learns_from_the_training_images(network, train_images, id_images, ood_images, method):
    loaders = {
        "test": make_loader(make_images(30, 7)), "near": {"a": make_loader(make_images(20, 8))},
        "far": {"b": make_loader(make_images(20, 9))}, "val": make_loader(id_images), "ood_val": make_loader(ood_images),
    }  # fmt: skip
    train = make_loader(train_images)
    for search in ({"sweep": SWEEPS[method]}, {}):
        detector = method(network)
        result = evaluate(detector, Benchmark(**loaders, train=train), progress=False, **search)
        want = method(network, detector.settings).fit(train)
        np.testing.assert_allclose(result.scores["b"], want.predict_loader(loaders["far"]["b"])[1], rtol=1e-6)
        if issubclass(method, StreamingDetector):
            with pytest.raises(ValueError, match=r"benchmark\.train: None"):
                evaluate(method(network), Benchmark(**loaders), progress=False, **search)
            from_val = method(network, learn_from="val")
            evaluate(from_val, Benchmark(**loaders), progress=False, **search)
            assert from_val.state is not None


def test_train_may_be_missing_once_fitted(network, train_images, id_images):
    detector = BFAct(network).fit([train_images])
    benchmark = Benchmark([id_images], {"a": [id_images]}, {"b": [id_images]})
    evaluate(detector, benchmark, progress=False, known_accuracy=0.0)
