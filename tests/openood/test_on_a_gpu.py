"""OpenOOD's untouched scripts on a GPU give the results of the CPU, from cached features as well."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a GPU with CUDA, and there is none"),
]

FROM_FEATURES = ["msp", "react", "knn", "dice", "temp_scaling", "gradnorm"]
ON_IMAGES = ["rankfeat"]
OURS = ["adascale", "adascale_logit", "optfs"]


def test_tables_on_gpu_equal_those_on_cpu(run_script, run_root, tmp_path):
    names = ",".join([*FROM_FEATURES, *ON_IMAGES, *OURS])
    command = [
        "-m",
        "openood_adascale",
        "run",
        "--postprocessors",
        names,
        "scripts/eval_ood.py",
        "--save-csv",
    ]
    tables = {}
    for device in ("cuda", "cpu"):
        env = {
            "OPENOOD_DEVICE": device,
            "OPENOOD_ADASCALE_CACHE_DIR": str(tmp_path / device),
            "NVIDIA_TF32_OVERRIDE": "0",
        }
        done = run_script([*command, "--root", run_root], env=env)
        on_images = re.findall("openood-adascale: ([a-z_]+): runs on the images", done.stderr)
        assert {*on_images} == {*ON_IMAGES}, done.stderr[-4000:]
        tables[device] = {
            name: pd.read_csv(run_root / f"ood/{name}.csv", index_col=0)
            for name in OURS + FROM_FEATURES + ON_IMAGES
        }
        for folder in ("ood", "s0/postprocessors"):
            for path in (run_root / folder).iterdir():
                path.unlink()
    for name, want in tables["cpu"].items():
        mean = [
            frame.map(lambda cell: float(str(cell).split(" ")[0])) for frame in (tables["cuda"][name], want)
        ]
        # An image of 36 is 2.8 points.
        pd.testing.assert_frame_equal(*mean, atol=3.0, rtol=0, obj=name)


def test_eval_ood_imagenet_writes_a_table(run_script, imagenet_checkpoint):
    """`net.cuda()` as the script has it, shuffled loaders, a search."""
    run_script(
        ["scripts/eval_ood_imagenet.py", "--ckpt-path", imagenet_checkpoint, "--postprocessor", "adascale", "--save-csv",
         "--batch-size", "8"],
        env={"OPENOOD_DEVICE": ""},
    )  # fmt: skip
    table = pd.read_csv(imagenet_checkpoint.parent / "ood/adascale.csv", index_col=0)
    assert table.notna().all(axis=None)
