#!/usr/bin/env bash
# What memory a real window takes over many runs, under Xvfb: edits a small workflow so often, waits for each run, and says
# what the process holds at the beginning, when it keeps all that it was shown (500 pictures, which fit, and the last 100 runs), and at the end.
#
#     cli/benches/window-memory.sh [RETOUCH] [RUNS]
#
# Ends with an error when it grew by more than 8 MiB from there to the end. RUNS: 1000 unless given, at least 700. Needs Xvfb
# and a Vulkan driver.
set -euo pipefail
cd "$(dirname "$0")/../.."
retouch="$(realpath "${1:-target/release/retouch}")"
runs="${2:-1000}"
if [ "$runs" -lt 700 ]; then
    echo "at least 700 runs" >&2
    exit 2
fi
work="$(mktemp -d)"
display=":$((90 + RANDOM % 100))"
ours=()
end() {
    for process in "${ours[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap end EXIT

Xvfb "$display" -screen 0 1280x800x24 -nolisten tcp >/dev/null 2>&1 &
ours+=($!)
sleep 1
cp references/teddy/01.png "$work/photo.png"
text() {
    cat <<YAML
schema: retouch/v1
name: small
nodes:
  photo: {op: load_image, path: photo.png}
  small: {op: resize_image, image: \$photo, width: $1, height: 64}
outputs:
  picture: {value: \$small}
YAML
}
text 64 >"$work/small.yaml"
: >"$work/events.jsonl"
# The cache of memory is kept small: it is meant to fill, and that is not what is measured.
DISPLAY="$display" XDG_STATE_HOME="$work/state" "$retouch" view "$work/small.yaml" --json --no-cache --ram-cache 8MiB \
    --out "$work/out" >"$work/events.jsonl" 2>"$work/errors" &
view=$!
ours+=("$view")
finished() { grep -c '"run_finished"' "$work/events.jsonl" || true; }
await() {
    for _ in $(seq 1200); do
        [ "$(finished)" -ge "$1" ] && return 0
        kill -0 "$view" 2>/dev/null || { cat "$work/errors" >&2; exit 1; }
        sleep 0.01
    done
    echo "run $1 does not come" >&2
    exit 1
}
held() { awk '/^VmRSS/ {print $2}' "/proc/$view/status"; }
await 1
first="$(held)"
full=0
for run in $(seq 2 "$runs"); do
    text "$((64 + run % 500))" >"$work/next.yaml"
    mv "$work/next.yaml" "$work/small.yaml"
    await "$run"
    [ "$run" -eq 660 ] && full="$(held)"
done
last="$(held)"
echo "after a run $first KiB, after 660 runs $full KiB, after $runs runs $last KiB"
[ "$full" -gt 0 ] && [ "$((last - full))" -le 8192 ]
