#!/usr/bin/env bash
# Draws the pictures that README.md and docs/ show: `docs/pictures.sh [RETOUCH]`.
# RETOUCH: the program, target/release/retouch unless given. The viewer's pictures need a Vulkan driver (mesa-vulkan-drivers).
# Another processor may draw compare.png and sweep.png with other last bits; `retouch replay` says whether that is all.
set -euo pipefail
cd "$(dirname "$0")/.."
retouch="${1:-target/release/retouch}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# Drawn from nothing, with the recipes that they carry.
"$retouch" run workflows/compare.yaml sheet --no-cache --out "$work/drawn" -q >/dev/null
mv "$work/drawn/compare/42.png" docs/compare.png
echo docs/compare.png
"$retouch" sweep workflows/sweep.yaml sheet --no-cache --out "$work/drawn" -q >/dev/null
mv "$work/drawn/sweep/sheet.png" docs/sweep.png
echo docs/sweep.png

view() {
    local file="$1"
    shift
    "$retouch" view workflows/layout-and-retouch.yaml --cache-dir "$work/cache" --out "$work/out" --screenshot "$file" "$@" >/dev/null
    echo "$file"
}
view docs/view.png --select final_large --size 1360x860
view docs/view-steps.png --select retouch/draw --step 40 --size 1360x860 --theme light --no-run
