"""Tests of the registry, of loaders, and of progress bars."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detector_tester import DetectorTester
from networks import make_images, make_loader

from openood_adascale import MSP, AdaSCALE, Detector
from openood_adascale.detectors.base import FittedDetector, StreamingDetector
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import ImageError, NotFiniteError, SettingError

FIT = make_images(50, 3)


def test_table_lists_the_methods_in_order():
    assert list(METHODS) == ["msp", "ebo", "scale", "lts", "bfact", "optfs", "adascale", "adascale_logit"]
    assert [method.label for method in METHODS.values()] == [
        "MSP", "EBO", "SCALE", "LTS", "BFAct", "OptFS", "AdaSCALE-A", "AdaSCALE-L",
    ]  # fmt: skip
    assert [n for n, m in METHODS.items() if issubclass(m.detector, StreamingDetector)] == ["bfact", "optfs"]


def test_new_methods_are_a_few_lines(network):
    class MaxLogit(Detector):
        def score_statistics(self, statistics, settings, state):
            return statistics.prediction, statistics.logits.amax(1)

    class Centred(FittedDetector):
        def fit_state(self, statistics, settings):
            return statistics.logits.mean(0)

        def score_statistics(self, statistics, settings, state):
            return statistics.prediction, -(statistics.logits - state).norm(dim=1)

    with torch.no_grad():
        z = network(FIT)
    torch.testing.assert_close(MaxLogit(network).score(FIT), z.amax(1))
    torch.testing.assert_close(Centred(network).fit([FIT]).score(FIT), -(z - z.mean(0)).norm(dim=1))
    with pytest.raises(TypeError, match="abstract"):
        Detector(network)


def test_loader_may_yield_batches_of_several_kinds(network):
    labels = torch.arange(50) % 5
    kinds = [
        [FIT], [(FIT, labels)], [[FIT, labels, "path"]], [{"data": FIT, "label": labels, "index": labels}], [[FIT]],
        [(FIT,)], [FIT[:20], FIT[:0], FIT[20:]], (part for part in FIT.split(20)), make_loader(FIT, 50),
    ]  # fmt: skip
    detector = AdaSCALE(network).fit(kinds[0])
    want = detector.score(FIT)
    for kind in kinds:
        _, scores, found = detector.predict_loader(kind, progress=False)
        np.testing.assert_allclose(scores, want, rtol=1e-5)
        assert set(found) in ({-1}, {0, 1, 2, 3, 4})
    assert [len(scores) for _, scores, _ in detector.predict_batches(FIT.split(20))] == [20, 20, 10]


def test_loader_without_images_is_refused(network):
    for loader in ([], [FIT[:0]]):
        for call in (AdaSCALE(network).fit, MSP(network).predict_loader, MSP(network).fit_threshold):
            with pytest.raises(ValueError, match="loader: it yields no images"):
                call(loader)
    for batch in ([], None, 3, {"picture": FIT}):
        with pytest.raises(TypeError, match="loader: "):
            AdaSCALE(network).fit([batch])


def test_images_that_are_not_finite_are_named(network):
    images = FIT.clone()
    images[23] = float("inf")
    batches = [
        {"data": images[rows], "label": torch.zeros(len(rows)), "image_name": [f"{i}.png" for i in rows]}
        for rows in (range(20), range(20, 50))
    ]
    with pytest.raises(NotFiniteError, match=r"images: NaN or infinity for 1 image\(s\), 23\.png$") as caught:
        AdaSCALE(network).fit(batches)
    assert caught.value.rows == [23]
    for loader in (make_loader(images), [images]):
        with pytest.raises(NotFiniteError, match=r"number 23 \(counted from 0\)"):
            MSP(network).predict_loader(loader, progress=False)


def test_errors_cross_process_borders():
    for error in (
        SettingError("k1", 0, "more"), NotFiniteError("images", [3]), NotFiniteError("images", [3], ["a.png"]),
        ImageError("a 'b'.png", "truncated"), SettingError("k1", 0, "more").within("a.yml"),
    ):  # fmt: skip
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    from_worker = ImageError(
        'Traceback …\nopenood_adascale.errors.ImageError: "a\'b.png": it is\ntruncated\n'
    )
    assert (from_worker.path, from_worker.why) == ("a'b.png", "it is\ntruncated")


@pytest.mark.parametrize("name", ["msp", "bfact", "adascale"])
def test_progress_is_shown_if_asked_for(network, name, capsys):
    tester = DetectorTester(name)
    for progress, shown in ((False, False), (None, False), (True, True)):
        detector = tester.make(network).fit(make_loader(FIT), progress)
        assert ("Fit" in capsys.readouterr().err) == (shown and detector.requires_fit)
        detector.predict_loader(make_loader(FIT), progress)
        assert ("50/50" in capsys.readouterr().err) == shown
