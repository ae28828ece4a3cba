#!/usr/bin/env bash
# Audits an unlearned model before its release, and says whether it may go out.
#   examples/pre-release.sh TARGET UNLEARNED [OUT]
# For a verdict other than "undecided", add --texts forget.txt or --benchmark DIR, and undecided to --fail-on.
set -euo pipefail
target=$1 unlearned=$2 out=${3:-audits/release}

unforgotten audit "$target" "$unlearned" --out "$out" --fail-on undone

echo "To release: paste $out/model-card.md into the model's card, and keep $out beside the weights."
