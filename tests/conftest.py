"""Nothing in a test reaches for a hub, and nothing draws on a screen."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or a fork after the first tokenization warns
os.environ["MPLBACKEND"] = "Agg"
