"""OpenOOD's script under torchrun: one process runs it, all of them its passes, and the tables are those of one process."""

from __future__ import annotations

import pytest

NAMES = ["msp", "adascale", "rankfeat"]  # from features, with perturbed images too, and by the images alone
SCRIPT = ["-m", "openood_adascale", "run", "--postprocessors", ",".join(NAMES), "scripts/eval_ood.py"]


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_the_tables_are_those_of_one_process(run_script, run_root):
    def tables(*torchrun):
        args = [*torchrun, *SCRIPT, "--root", run_root, "--save-csv", "--batch-size", "32"]
        # One thread everywhere: torch's sums differ with their number.
        done = run_script(args, env={"OMP_NUM_THREADS": "1"})
        found = {name: (run_root / f"ood/{name}.csv").read_text() for name in NAMES}
        for path in [*run_root.glob("ood/*.csv"), *run_root.glob("s0/postprocessors/*.pkl")]:
            path.unlink()
        return found, done

    want, _ = tables()
    got, done = tables("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert got == want
    # No line is printed twice.
    assert done.stderr.count("openood-adascale: adascale (2 of 3)") == 1
    assert done.stdout.count("near FPR@95") == 1
