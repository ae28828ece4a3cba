#!/usr/bin/env bash
# Audits an unlearned model before its release, and says whether it may go out: code 0 if so, 1 if not, 2 for bad input.
#   examples/pre-release.sh TARGET UNLEARNED [OUT [BENCHMARK [FORMATS]]]
# Without a benchmark the weights decide alone: a format that swallows the update stops the release. With one, a directory in
# MUSE's layout, the quantized models are asked too: what comes back, what stays open and a broken model stop it as well.
set -euo pipefail
target=$1 unlearned=$2 out=${3:-audits/release} benchmark=${4:-}
formats=${5:-int4-g64,int4-row,nf4-b64,fp4-b64,int8-row}

if [ -z "$benchmark" ]; then
  unforgotten audit "$target" "$unlearned" --out "$out" --formats "$formats" \
    --fail-on swallowed,partly-swallowed,no-update
else
  unforgotten audit "$target" "$unlearned" --out "$out" --formats "$formats" --benchmark "$benchmark" \
    --fail-on swallowed,no-update,undone,undecided,retain-lost
fi

echo "To release: paste $out/model-card.md into the model's card, and keep $out beside the weights."
