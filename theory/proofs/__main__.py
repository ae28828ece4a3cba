"""`python -m unforgotten.theory.proofs`: run every proof, and print what is proved, where, and what is only tested."""

from __future__ import annotations

import sys

from unforgotten.theory.proofs.run import print_proofs

if __name__ == "__main__":
    sys.exit(print_proofs())
