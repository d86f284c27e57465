"""LTS, BFAct and OptFS against float64 references written from their definitions; presets against the tables."""

import numpy as np
import pytest
import torch
import yaml
from conftest import TinyNet, make_images, make_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from openood_adascale import AdaSCALE
from openood_adascale.encode import encode
from openood_adascale.evaluation import Benchmark, evaluate
from openood_adascale.histogram import BINS, bin_of, histogram, lower_edge, middle, nearest_edge, quantile
from openood_adascale.models import Classifier
from openood_adascale.plugin import configs_root
from openood_adascale.presets import presets
from openood_adascale.published import hyperparameters
from openood_adascale.rivals import LTS, BFAct, OptFS, butterworth
from openood_adascale.settings import AdaSCALESettings, SettingError

# References: NumPy float64, one image at a time.


def reference_lts(a, weight, bias, percentile):
    positive = np.sort(np.maximum(a, 0))[::-1]
    k = max(1, a.size - int(np.round(a.size * percentile / 100)))
    return logsumexp((weight @ a + bias) * (positive.sum() / positive[:k].sum()) ** 2)


def reference_bfact(a, weight, bias, cutoff, order):
    return logsumexp(weight @ (a / np.sqrt(1 + (a / cutoff) ** (2 * order))) + bias)


def reference_theta(train, weight, bias, edges):
    importance = np.zeros(len(edges) - 1)
    for a in train:
        predicted = weight[np.argmax(weight @ a + bias)]
        for k in range(len(importance)):
            inside = (a >= edges[k]) & (a < edges[k + 1])
            importance[k] += (predicted * a)[inside].sum() / len(train)
    return 1000 * importance / np.sqrt((importance**2).sum())


def reference_optfs(a, weight, bias, edges, theta, score):
    shaped = np.zeros_like(a)
    for k in range(len(theta)):
        inside = (a >= edges[k]) & (a < edges[k + 1])
        shaped[inside] = theta[k] * a[inside]
    if score == "energy":
        return logsumexp(weight @ shaped + bias)
    return weight[np.argmax(weight @ a + bias)] @ shaped


class Signed(TinyNet):
    """Activations of both signs, as a ViT's."""

    def __init__(self):
        super().__init__()
        self.features.append(torch.nn.LayerNorm(64))


@pytest.fixture(params=[TinyNet, Signed])
def net(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param().eval()


@pytest.fixture
def train_images():
    return make_images(120, 3)


def activations(network, images):
    return encode(Classifier(network, images), images).activation.double().numpy()


def head(network):
    return network.fc.weight.detach().double().numpy(), network.fc.bias.detach().double().numpy()


def passes(network, call):
    """Images that the network sees during a call, without the two that the head is found with."""
    network.calls.clear()
    call()
    return sum(network.calls) - 2


# LTS.


@pytest.mark.parametrize("percentile", [95, 80.5, 99.99])
def test_lts_equals_its_definition_and_adascale_l(net, id_images, percentile):
    score = LTS(net, percentile=percentile).score(id_images)
    want = [reference_lts(a, *head(net), percentile) for a in activations(net, id_images)]
    np.testing.assert_allclose(score.numpy(), want, rtol=1e-5)
    adascale = AdaSCALE(net, variant="L", percentile=(percentile, percentile)).fit([id_images])
    torch.testing.assert_close(score, adascale.score(id_images))


def test_lts_equals_pytorch_oods(net, id_images):
    theirs = pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)
    want = theirs.LTS(net.features, net.fc).predict(id_images)
    torch.testing.assert_close(LTS(net).score(id_images).float(), -want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 9, 10, 30, 50, 70, 90, 128, 342, 2048])
def test_lts_counts_as_pytorch_ood_does(size):
    from openood_adascale import functional as F

    theirs = pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)
    a = torch.randn(20, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) + 1
    want = theirs.LTS.scaling_factor(a, 0.05)
    got = F.scaling_factor(a, 95).square()
    torch.testing.assert_close(got, torch.where(want.isnan(), 1.0, want))


def test_lts_learns_nothing(net, id_images):
    assert not LTS.needs_fit
    assert LTS(net).state is None
    assert torch.isfinite(LTS(net).score(id_images)).all()


# What streams are counted in.

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=finite))
def test_bins_are_in_order_and_narrow(values):
    numbers = torch.from_numpy(np.sort(values))
    bins = bin_of(numbers)
    assert ((bins >= 0) & (bins < BINS)).all()
    assert (bins.diff() >= 0).all()
    assert (lower_edge(bins) <= numbers).all()
    above = lower_edge(bins + 1)
    assert (numbers < above)[~above.isnan()].all()
    assert torch.equal(bin_of(lower_edge(bins)), bins)
    exact = numbers.double()
    near = torch.finfo(torch.float32).tiny
    assert ((middle(bins) - exact).abs() <= 2**-15 * exact.abs() + near).all()
    snapped = lower_edge(nearest_edge(numbers)).double()
    assert (
        (snapped - exact).abs()[snapped.isfinite()] <= (2**-15 * exact.abs() + near)[snapped.isfinite()]
    ).all()


@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=finite.filter(lambda x: abs(x) < 1e30)),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=30)
def test_quantiles_are_as_near_as_promised(values, fraction):
    got = quantile(histogram([(torch.from_numpy(values), None)]), fraction)
    values = values.astype(np.float64)
    ends = [np.quantile(values, fraction, method=method) for method in ("lower", "higher")]
    # what NumPy and we round differently between the two
    slack = 1e-12 * np.abs(values).max() + 2.0**-126
    assert abs(got - np.quantile(values, fraction)) <= 2**-15 * np.abs(ends).max() + slack


@pytest.mark.parametrize("draw", ["normal", "lognormal", "gamma", "half zeros"])
def test_quantiles_of_activations(draw):
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(0.3, 1, 100_000),
        "lognormal": rng.lognormal(-3, 3, 100_000),
        "gamma": rng.gamma(0.3, 0.5, 100_000),
        "half zeros": np.maximum(rng.normal(0, 0.4, 100_000), 0),
    }[draw].astype(np.float32)
    counted = histogram((torch.from_numpy(part), None) for part in np.array_split(values, 7))
    assert int(counted.counts.sum()) == 100_000
    for fraction in (0.001, 0.05, 0.5, 0.85, 0.95, 0.999):
        want = np.quantile(values.astype(np.float64), fraction)
        assert quantile(counted, fraction) == pytest.approx(want, rel=2**-15)


def test_float64_and_extreme_activations_are_counted():
    counted = histogram([(torch.tensor([1e300, -1e300, 0.0, -0.0, 1e-300], dtype=torch.float64), None)])
    assert counted.counts.tolist() == [1, 3, 1]
    assert middle(counted.bins)[1] == 0
    assert torch.isfinite(middle(counted.bins)).all()
    with pytest.raises(ValueError, match="batches: "):
        histogram([])


# BFAct.


@pytest.mark.parametrize(("percentile", "order"), [(95, 2), (80, 1), (99, 3.5)])
def test_bfact_equals_its_definition(net, train_images, id_images, percentile, order):
    detector = BFAct(net, percentile=percentile, order=order).fit(make_loader(train_images))
    exact = np.percentile(activations(net, train_images), percentile)
    assert float(detector.state) == pytest.approx(exact, rel=2**-15)
    a = np.abs(activations(net, id_images)) if order % 1 else activations(net, id_images)
    if (activations(net, id_images) == a).all():
        given_cutoff = [reference_bfact(row, *head(net), float(detector.state), order) for row in a]
        np.testing.assert_allclose(detector.score(id_images).numpy(), given_cutoff, rtol=1e-6)
        with_exact = [reference_bfact(row, *head(net), exact, order) for row in a]
        np.testing.assert_allclose(detector.score(id_images).numpy(), with_exact, rtol=1e-4)


def test_butterworth_where_it_could_break():
    a = torch.tensor([[-2.0, 0.0, 1.0, 1e30]])
    torch.testing.assert_close(
        butterworth(a, 1.0, 1)[0, :3], torch.tensor([-2 / 5**0.5, 0, 0.5**0.5]).double()
    )
    assert torch.equal(butterworth(a, -1.0, 1.5), butterworth(a, 1.0, 1.5))
    assert torch.equal(butterworth(a, 0.0, 2), torch.zeros(1, 4).double())
    for cutoff in (0.0, 1e-30, 1.0, 1e300):
        assert torch.isfinite(butterworth(a, cutoff, 100)).all()


# OptFS.


@pytest.mark.parametrize("score", ["vanilla", "energy"])
@pytest.mark.parametrize(("bins", "percentile"), [(100, (0.1, 99.9)), (7, (5, 90)), (1, (10, 60))])
def test_optfs_equals_its_definition(net, train_images, id_images, score, bins, percentile):
    detector = OptFS(net, bins=bins, percentile=percentile, score=score).fit(make_loader(train_images))
    edges, theta = (detector.state[name].double().numpy() for name in ("edges", "theta"))
    train, a = activations(net, train_images), activations(net, id_images)
    low, high = np.percentile(train, percentile)
    largest = max(abs(low), abs(high))
    np.testing.assert_allclose(edges, np.linspace(low, high, bins + 1), atol=2**-14 * largest, rtol=0)
    # What is learnt is exact for the edges that are used.
    np.testing.assert_allclose(theta, reference_theta(train, *head(net), edges), rtol=1e-4, atol=1e-3)
    assert np.linalg.norm(theta) == pytest.approx(1000)
    want = [reference_optfs(row, *head(net), edges, theta, score) for row in a]
    np.testing.assert_allclose(detector.score(id_images).numpy(), want, rtol=1e-4)
    np.testing.assert_array_equal(
        detector.predict(id_images)[0], (a @ head(net)[0].T + head(net)[1]).argmax(1)
    )


@pytest.mark.parametrize("score", ["vanilla", "energy"])
def test_optfs_with_the_exact_edges(net, score):
    """The edges' error moves a few activations to the next bin; each moves a score a little."""
    train, images = make_images(400, 3), make_images(60, 4)
    detector = OptFS(net, score=score).fit(make_loader(train))
    a = activations(net, train)
    edges = np.linspace(*np.percentile(a, (0.1, 99.9)), 101)
    theta = reference_theta(a, *head(net), edges)
    want = np.array(
        [reference_optfs(row, *head(net), edges, theta, score) for row in activations(net, images)]
    )
    got = detector.score(images).numpy()
    assert np.median(np.abs(got - want)) < 0.05 * want.std()
    assert np.corrcoef(got, want)[0, 1] > 0.998


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_batch_size_and_order_do_not_matter(net, train_images, id_images, method):
    whole = method(net).fit(make_loader(train_images, 120)).score(id_images)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    for batch_size in (1, 7, 50):
        split = method(net).fit(make_loader(train_images[order], batch_size))
        torch.testing.assert_close(split.score(id_images), whole, rtol=1e-4, atol=1e-4)
        scored = split.infer(make_loader(id_images, batch_size))[1]
        torch.testing.assert_close(torch.from_numpy(scored), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_many_images_are_judged_in_blocks(net, train_images, id_images, method, monkeypatch):
    detector = method(net).fit([train_images])
    whole = detector.score(id_images)
    monkeypatch.setattr("openood_adascale.rivals._BLOCK", 64 * 3 + 1)
    torch.testing.assert_close(detector.score(id_images), whole)


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_memory_does_not_grow_with_the_images(net, method):
    sizes = []
    for count in (1, 40):
        summary = method(net).fit(make_images(100, seed) for seed in range(count)).summary
        sizes.append(len(summary.bins))
        assert int(summary.counts.sum()) == count * 100 * 64
    assert sizes[1] < BINS / 10


@pytest.mark.parametrize("method", [LTS, BFAct, OptFS])
def test_dead_network(method, id_images):
    network = TinyNet().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for settings_ in [{}] if method is not OptFS else [{}, {"score": "energy"}]:
        score = method(network, **settings_).fit([id_images]).score(id_images)
        want = 0.0 if settings_ == {} and method is OptFS else np.log(5)
        torch.testing.assert_close(score, torch.full((50,), want, dtype=torch.float64))


@pytest.mark.parametrize("method", [LTS, BFAct, OptFS])
def test_precisions_of_the_network(net, train_images, id_images, method):
    want = method(net).fit([train_images]).score(id_images)
    got = method(net.double()).fit([train_images]).score(id_images)
    # float64 can move an activation across an edge
    assert np.corrcoef(got, want)[0, 1] > 0.999


# Searches.

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
    learnt = {"learn_loader": train} if method.streams else {}
    found = []
    count = passes(
        network,
        lambda: found.append(
            detector.search(make_loader(id_images), make_loader(ood_images), SWEEPS[method], **learnt)
        ),
    )
    assert count == 90 + (120 if method.streams else 0)
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
    # what fit learnt from is not looked at again
    assert passes(network, lambda: fitted.search(val, ood, sweep)) == 90
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
        np.testing.assert_allclose(result.scores["b"], want.infer(loaders["far"]["b"])[1], rtol=1e-6)
        if method.streams:
            with pytest.raises(ValueError, match=r"benchmark\.train: None"):
                evaluate(method(network), Benchmark(**loaders), progress=False, **search)
            from_val = method(network, learn_from="val")
            evaluate(from_val, Benchmark(**loaders), progress=False, **search)
            assert from_val.state is not None


def test_train_may_be_missing_once_fitted(network, train_images, id_images):
    detector = BFAct(network).fit([train_images])
    near = {"a": [id_images]}
    evaluate(detector, Benchmark([id_images], near, near), progress=False, known_accuracy=0.0)


# Settings.


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (LTS, "percentile", 100), (LTS, "percentile", (80, 85)), (LTS, "percentile", "many"),
        (BFAct, "percentile", 0), (BFAct, "order", 0.5), (BFAct, "order", float("inf")), (BFAct, "learn_from", "test"),
        (OptFS, "bins", 0), (OptFS, "bins", 2.5), (OptFS, "percentile", (50, 50)), (OptFS, "percentile", (99.9, 0.1)),
        (OptFS, "percentile", (0, 99)), (OptFS, "percentile", 95), (OptFS, "score", "msp"), (OptFS, "learn_from", None),
    ],
)  # fmt: skip
def test_bad_settings_are_named(network, method, name, value):
    with pytest.raises(SettingError, match=f"{name}: .*expected") as error:
        method(network, **{name: value})
    assert str(value[0] if isinstance(value, tuple) else value) in str(error.value)
    assert not network.calls


def test_settings_from_a_yml_and_a_command_line(network):
    detector = OptFS(network, percentile=list("[1, 99]"), bins="20")
    want = {"bins": 20, "percentile": [1, 99], "score": "vanilla", "learn_from": "train"}
    assert want.items() <= detector.settings.as_dict().items()


def test_where_it_learns_from_is_no_candidate(network, id_images):
    with pytest.raises(SettingError, match=r"learn_from_list: .*postprocessor_args"):
        BFAct(network).search([id_images], [id_images], {"learn_from_list": ["train", "val"]})


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_not_fitted(network, id_images, method):
    with pytest.raises(RuntimeError, match="not fitted"):
        method(network).score(id_images)
    with pytest.raises(ValueError, match="loader: it yields no images"):
        method(network).fit([])
    bad = id_images.clone()
    bad[33] = float("nan")
    with pytest.raises(ValueError, match="number 33"):
        method(network).fit(make_loader(bad))


# The packaged yml files.


def section(name):
    return yaml.safe_load((configs_root() / "postprocessors" / f"{name}.yml").read_text())["postprocessor"]


@pytest.mark.parametrize(("name", "method"), [("optfs", OptFS), ("lts", LTS), ("bfact", BFAct)])
def test_yml_has_the_defaults(network, name, method):
    found = section(name)
    assert found["name"] == name
    assert found["APS_mode"] is False
    assert method(network, **found["postprocessor_args"]).settings == method(network).settings
    own = set(vars(method.settings_class)["__annotations__"]) - {"not_swept"}
    assert own <= set(found["postprocessor_args"])


def test_there_is_a_preset_for_every_row_of_the_tables():
    table = presets()
    assert table["name"].is_unique
    assert len(table) == len(hyperparameters()) == 24
    assert {"adascale_resnet50", "adascale_logit_regnet_y_16gf", "adascale_cifar10_wrn_28_10"} < set(
        table["name"]
    )
    packaged = {path.stem for path in (configs_root() / "postprocessors").glob("*.yml")}
    adascale = {"adascale", "adascale_logit", "adascale_joint", "adascale_logit_joint"}
    assert packaged == set(table["name"]) | adascale | {"optfs", "lts", "bfact"}


@pytest.mark.parametrize("row", presets().to_dict("records"), ids=lambda row: row["name"])
def test_preset_has_the_tables_numbers(row):
    found = section(row["name"])
    assert found["name"] == row["name"]
    assert found["APS_mode"] is False
    assert "postprocessor_sweep" not in found
    made = AdaSCALESettings.from_mapping(found["postprocessor_args"])
    assert made.percentile == (row["p_min"], row["p_max"])
    assert (made.lmbda, made.k1, made.k2) == (row["lambda"], row["k1_percent"], row["k2_percent"])
    assert (made.o, made.epsilon, made.pixels) == (row["o"], row["epsilon"], "trivial")
    text = (configs_root() / "postprocessors" / f"{row['name']}.yml").read_text()
    assert f"{row['source']} of" in text
    assert row["network"] in text


def test_the_command_line_lists_the_presets(capsys):
    from openood_adascale.cli import main

    assert main(["presets"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == "name variant dataset network percentiles k1 k2 o source".split()  # noqa: SIM905
    assert len(lines) == 24
    rows = [" ".join(line.split()) for line in lines]
    assert "adascale_resnet50 A imagenet resnet50 80-85 1 5 0.05 Table 13" in rows
