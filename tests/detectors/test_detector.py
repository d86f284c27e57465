"""AdaSCALE and the other detectors on loaders: fit, score, search; the network's calls are counted."""

import itertools
import pickle

import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import roc_auc_score
from tiny import HEAD, TinyNet, make_images, make_loader
from torch import nn

from openood_adascale import AdaSCALE
from openood_adascale.detectors.adascale import AdaSCALESettings
from openood_adascale.detectors.energy import Energy
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.scale import SCALE
from openood_adascale.errors import NotFinite, SettingError
from openood_adascale.evidence.classifier import Classifier
from openood_adascale.evidence.collect import collect
from openood_adascale.evidence.encode import encode
from openood_adascale.evidence.plan import Perturbation
from openood_adascale.evidence.reader import Reader
from openood_adascale.evidence.sharing import forget

SETTINGS = {"percentile": (60, 90), "k1": 5, "k2": 20}


def arrays(network, images, perturbation):
    encoded = encode(Classifier(network, images), images, [perturbation])
    return encoded.activation.numpy(), encoded.perturbed[perturbation].numpy()


@pytest.mark.parametrize("variant", ["A", "L"])
@pytest.mark.parametrize("pixels", ["trivial", "salient", "random", "all"])
def test_scores_equal_the_reference(network, id_images, ood_images, variant, pixels):
    detector = AdaSCALE(network, variant=variant, pixels=pixels, **SETTINGS).fit(make_loader(id_images))
    pred, score = detector.predict(ood_images)
    perturbation = Perturbation(pixels, 0.05, 0.5)
    weight, bias = (p.detach().numpy() for p in (network.fc.weight, network.fc.bias))
    want, _, want_pred = reference.scores(
        *arrays(network, id_images, perturbation), *arrays(network, ood_images, perturbation), weight, bias,
        variant=variant, percentile_pair=(60, 90), k1=5, k2=20,
    )  # fmt: skip
    np.testing.assert_allclose(score.numpy(), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(pred.numpy(), want_pred)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_batch_size_and_order_do_not_matter(network, id_images, ood_images, batch_size):
    whole = AdaSCALE(network, num_samples=30, **SETTINGS).fit(make_loader(id_images, 50))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    split = AdaSCALE(network, num_samples=30, **SETTINGS).fit(make_loader(id_images[order], batch_size))
    torch.testing.assert_close(split.state, whole.state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(split.predict_loader(make_loader(ood_images, batch_size))[1]),
        whole.score(ood_images),
        rtol=1e-5,
        atol=1e-5,
    )


def test_num_samples_is_a_seeded_subset(network, id_images):
    loader = make_loader(id_images)
    everything = AdaSCALE(network, **SETTINGS).fit(loader).state
    first = AdaSCALE(network, num_samples=20, **SETTINGS).fit(loader).state
    other = AdaSCALE(network, num_samples=20, seed=1, **SETTINGS).fit(loader).state
    assert len(first) == len(other) == 20
    assert not torch.equal(first, other)
    assert set(first.tolist()) < set(everything.tolist())
    assert torch.equal(AdaSCALE(network, num_samples=500, **SETTINGS).fit(loader).state, everything)


def test_search_runs_the_network_once_over_each_loader(network, id_images, ood_images):
    def calls(sweep):
        forget()
        network.calls.clear()
        found = AdaSCALE(network, **SETTINGS).search(make_loader(id_images), make_loader(ood_images), sweep)
        return sum(network.calls) - HEAD, len(found.table)

    images = len(id_images) + len(ood_images)
    many = {
        "percentile_list": [[60, 80], [80, 90]],
        "k1_list": [1, 5],
        "k2_list": [5, 50, 100],
        "lmbda_list": [1, 10],
    }
    assert calls(many) == (2 * images, 24)
    assert calls({**many, "o_list": [0.01, 0.05, 0.1]}) == (4 * images, 72)
    assert calls({"epsilon_list": [0.1, 0.5], "pixels_list": ["trivial", "random"]}) == (5 * images, 4)
    assert calls({"variant_list": ["A", "L"]}) == (2 * images, 2)


def test_every_candidate_of_a_search_is_what_fit_and_score_give(network, id_images, ood_images):
    sweep = {
        "k2_list": [5, 30],
        "percentile_list": [[60, 65], [70, 95]],
        "o_list": [0.05, 0.2],
        "variant_list": ["A", "L"],
    }
    detector = AdaSCALE(network, k1=3)
    found = detector.search(make_loader(id_images), make_loader(ood_images), sweep)
    truth = np.r_[np.ones(50), np.zeros(40)]
    for row in found.table.to_dict("records"):
        auroc = row.pop("auroc")
        alone = AdaSCALE(network, AdaSCALESettings(**{**row, "num_samples": None})).fit(
            make_loader(id_images)
        )
        scores = torch.cat([alone.score(id_images), alone.score(ood_images)])
        assert auroc == pytest.approx(100 * roc_auc_score(truth, scores), abs=1e-6)
    assert found.auroc == found.table["auroc"].max()
    assert detector.settings == found.settings
    best = AdaSCALE(network, found.settings).fit(make_loader(id_images))
    torch.testing.assert_close(best.score(ood_images), detector.score(ood_images))


def test_percentiles_lie_between_the_bounds(network, id_images, ood_images):
    detector = AdaSCALE(network, percentile=(60, 90)).fit(make_loader(id_images))
    p = detector.percentiles(ood_images)
    assert ((p >= 60) & (p <= 90)).all()
    assert p.unique().numel() > 1


def test_one_validation_image(network, id_images):
    detector = AdaSCALE(network).fit(make_loader(id_images[:1]))
    p = detector.percentiles(id_images)
    assert set(p.tolist()) <= {80.0, 85.0}  # F is 0 or 1
    assert detector.percentiles(id_images[:1]).tolist() == [80.0]  # the image itself: Q' <= Q'


@pytest.mark.parametrize("percentile", [(0.001, 0.001), (99.999, 99.999), (0.5, 99.9)])
def test_extreme_percentiles_give_finite_scores(network, id_images, percentile):
    for variant in "AL":
        assert torch.isfinite(
            AdaSCALE(network, variant=variant, percentile=percentile).fit([id_images]).score(id_images)
        ).all()


def test_dead_network(id_images):
    network = TinyNet().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for variant in "AL":
        score = AdaSCALE(network, variant=variant).fit([id_images]).score(id_images)
        torch.testing.assert_close(score, torch.full((50,), np.log(5), dtype=torch.float64))


def test_loaders_of_several_kinds(network, id_images):
    labels = torch.arange(50) % 5
    kinds = [
        [id_images],
        [(id_images, labels)],
        [[id_images, labels, "path"]],
        [(id_images, ["a.png"] * 50)],
        [{"data": id_images, "label": labels, "index": labels}],
        [[id_images]],
        [(id_images,)],
    ]
    detector = AdaSCALE(network).fit(kinds[0])
    outputs = [detector.predict_loader(kind) for kind in kinds]
    for first, second in itertools.pairwise(outputs):
        np.testing.assert_array_equal(first[1], second[1])
    classes = {0, 1, 2, 3, 4}
    assert [set(output[2]) for output in outputs] == [{-1}, classes, classes, {-1}, classes, {-1}, {-1}]


def test_bad_input_is_named(network, id_images):
    with pytest.raises(RuntimeError, match="not fitted"):
        AdaSCALE(network).score(id_images)
    with pytest.raises(ValueError, match="loader: it yields no images"):
        AdaSCALE(network).fit([])
    with pytest.raises(TypeError, match=r"loader: .*'data'"):
        AdaSCALE(network).fit([{"image": id_images}])
    with pytest.raises(TypeError, match=r"images: torch\.uint8"):
        AdaSCALE(network).fit([id_images.to(torch.uint8)])
    with pytest.raises(TypeError, match="network: "):
        AdaSCALE(lambda x: x)
    with pytest.raises(SettingError, match="AdaSCALE: k3"):
        AdaSCALE(network, k3=1)
    with pytest.raises(SettingError):
        AdaSCALE(network).search([id_images], [id_images], {})
    bad = id_images.clone()
    bad[33] = float("nan")
    with pytest.raises(ValueError, match=r"images: .* number 33 \(counted"):
        AdaSCALE(network).fit(make_loader(bad))


def test_a_new_head_is_found_by_the_next_fit(network, id_images):
    detector = AdaSCALE(network).fit([id_images])
    network.fc = torch.nn.Linear(64, 5)
    want = AdaSCALE(network).fit([id_images]).score(id_images)
    torch.testing.assert_close(detector.fit([id_images]).score(id_images), want)


def test_errors_cross_process_borders():
    for error in (SettingError("k1", 0, "more"), NotFinite("images", [3])):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


def test_nothing_runs_before_the_settings_are_checked(network, id_images, ood_images):
    with pytest.raises(SettingError):
        AdaSCALE(network).search([id_images], [ood_images], {"k1_list": [1, 200]})
    assert not network.calls


def test_progress_bar_is_quiet_when_asked(network, id_images, capsys):
    AdaSCALE(network).fit(make_loader(id_images), progress=False)
    assert capsys.readouterr().err == ""
    AdaSCALE(network).fit(make_loader(id_images + 1), progress=True)
    assert "Fit" in capsys.readouterr().err


def test_msp_and_energy(network, id_images):
    with torch.no_grad():
        z = network(id_images)
    torch.testing.assert_close(MSP(network).score(id_images), z.softmax(1).amax(1))
    torch.testing.assert_close(Energy(network).score(id_images), z.double().logsumexp(1))


def test_scale_is_adascale_with_one_percentile(network, id_images):
    want = AdaSCALE(network, percentile=(85, 85)).fit([id_images]).score(id_images)
    torch.testing.assert_close(SCALE(network, percentile=85).score(id_images), want)


def test_large_evidence_stays_small():
    """What is kept of an image does not grow with what is not swept."""
    from openood_adascale.detectors.search import candidates
    from openood_adascale.evidence.plan import Execution, Plan

    network = TinyNet().eval()
    detector = AdaSCALE(network)
    tried = candidates(detector.settings, detector.default_sweep)
    plan = Plan.union(s.plan() for s in tried)
    evidence, _ = collect(Reader(network), [make_images(20, 0)], plan, Execution())
    kept = 64 - round(64 * 0.60) - (64 - round(64 * 0.99)) + 1
    assert [tensor[0].numel() for tensor in evidence.parts.values()] == [5, 1, 1, kept, 1, 1]


def test_a_head_of_one_activation_among_as_many_biases(id_images):
    """(C, 1), as long as biases and scales before it: (C,)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 1), nn.ReLU(), nn.Linear(1, 5)
    ).eval()
    detector = AdaSCALE(network).fit([id_images])
    assert torch.isfinite(detector.score(id_images)).all()
