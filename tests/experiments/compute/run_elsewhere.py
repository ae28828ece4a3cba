"""A whole run on the device that is not there: `run_elsewhere.py OUT SETTING=VALUE …`, settings of the micro profile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from elsewhere import elsewhere

from unforgotten.experiments import prepared_models, run
from unforgotten.experiments.arms import arm
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.models import saved_states

MICRO = Path(__file__).parents[2] / "micro.yaml"

if __name__ == "__main__":
    modules: tuple[Any, ...] = (run, prepared_models, arm, saved_states)
    with elsewhere() as device:
        for module in modules:
            module.device_of = lambda compute: device
        run.run(load_config(str(MICRO), overrides=sys.argv[2:]), Path(sys.argv[1]), resume=False)
