"""Settings of the rivals."""

import pytest
import yaml
from tiny import make_loader

from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.errors import SettingError
from openood_adascale.plugin.names import configs_root


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


def section(name):
    return yaml.safe_load((configs_root() / "postprocessors" / f"{name}.yml").read_text())["postprocessor"]


@pytest.mark.parametrize(("name", "method"), [("optfs", OptFS), ("lts", LTS), ("bfact", BFAct)])
def test_yml_has_the_defaults(network, name, method):
    found = section(name)
    assert found["name"] == name
    assert found["APS_mode"] is False
    assert method(network, **found["postprocessor_args"]).settings == method(network).settings
    own = set(vars(method.settings_class)["__annotations__"]) - {"not_swept", "only_judge"}
    assert own <= set(found["postprocessor_args"])
