#!/usr/bin/env bash
# Draws the pictures of the viewer that README.md and docs/view.md show: `docs/pictures.sh [RETOUCH]`.
# RETOUCH: the program, target/release/retouch unless given. Needs a Vulkan driver (mesa-vulkan-drivers).
set -euo pipefail
cd "$(dirname "$0")/.."
retouch="${1:-target/release/retouch}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
view() {
    local file="$1"
    shift
    "$retouch" view workflows/layout-and-retouch.yaml --cache-dir "$work/cache" --out "$work/out" --screenshot "$file" "$@" >/dev/null
    echo "$file"
}
view docs/view.png --select final_large --size 1360x860
view docs/view-steps.png --select retouch/draw --step 40 --size 1360x860 --theme light --no-run
