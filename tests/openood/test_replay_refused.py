"""Postprocessors that need more of an image than z and a are run on the images, as always."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from openood_needing_more import asking_later, looking_at_images, looking_into_the_network
from openood_replayed import Net, evaluated

from openood_adascale import using_store
from openood_adascale.errors import StoreError


@pytest.mark.parametrize("number", range(18))
def test_whoever_needs_more_is_run_on_the_images(small_evaluator, common, number, capfd):
    from openood.postprocessors import BasePostprocessor

    kind = [*looking_at_images(BasePostprocessor), *looking_into_the_network(BasePostprocessor)][number]

    def made():
        instance = kind(None)
        instance.APS_mode, instance.hyperparam_search_done = False, False
        return instance

    want, _, _ = evaluated(small_evaluator, Net(), postprocessor=made())
    with using_store(common):
        got, images, evaluator = evaluated(small_evaluator, Net(), postprocessor=made())
    pd.testing.assert_frame_equal(got, want, atol=2e-3, rtol=0)
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "as always" in line]
    assert told.startswith(f"openood-adascale: {kind.__name__}: run on the images, as always: ")
    assert images > 200
    assert type(evaluator.net) is Net


def test_who_needs_more_only_later_is_set_up_anew(small_evaluator, common, capfd):
    from openood.postprocessors import BasePostprocessor

    kind = asking_later(BasePostprocessor)
    torch.manual_seed(3)
    want, _, _ = evaluated(small_evaluator, Net(), postprocessor=kind(None), batch_size=8)
    drawn = torch.rand(2)
    with using_store(common):
        torch.manual_seed(3)
        got, _, evaluator = evaluated(small_evaluator, Net(), postprocessor=kind(None), batch_size=8)
        assert torch.equal(torch.rand(2), drawn)
        pd.testing.assert_frame_equal(got, want, atol=2e-3, rtol=0)
        told = capfd.readouterr().err
        assert "Later: run on the images, as always: it looks at the images themselves (flatten)" in told
        evaluator = small_evaluator(None, net=Net(), postprocessor=kind(None), batch_size=8)
        evaluator.postprocessor.drawn = 2.0
        with pytest.raises(
            StoreError, match="Later was changed after the Evaluator was made, and needs more"
        ):
            evaluator.eval_ood(progress=False)


def test_a_data_set_that_changes_afterwards(small_evaluator, common):
    from torchvision import transforms

    def changed(evaluator):
        loader = evaluator.dataloader_dict["ood"]["far"]
        for one in loader.values():
            one.dataset.transform_image = transforms.Compose([one.dataset.transform_image, lambda x: x * 3])
        return evaluator.eval_ood(progress=False)

    want = changed(small_evaluator("msp", net=Net()))
    with using_store(common):
        got = changed(small_evaluator("msp", net=Net()))
    pd.testing.assert_frame_equal(got, want, atol=2e-3, rtol=0)
