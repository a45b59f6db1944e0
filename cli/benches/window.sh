#!/usr/bin/env bash
# Opens a real window under Xvfb, edits the file beside it, and takes pictures of what the window shows:
#
#     cli/benches/window.sh [RETOUCH] [FOLDER]
#
# RETOUCH: the program, target/release/retouch unless given; FOLDER: where the pictures go, a new temporary one unless given.
# Needs Xvfb, xdotool, ImageMagick's `import` and a Vulkan driver (mesa-vulkan-drivers). Ends with an error when the window
# does not open, does not show an edit, or does not leave the run alone when it is closed.
set -euo pipefail
cd "$(dirname "$0")/../.."
retouch="$(realpath "${1:-target/release/retouch}")"
folder="${2:-$(mktemp -d)}"
mkdir -p "$folder"
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

Xvfb "$display" -screen 0 1400x900x24 -nolisten tcp >/dev/null 2>&1 &
ours+=($!)
export DISPLAY="$display"
for _ in $(seq 50); do
    xdotool getdisplaygeometry >/dev/null 2>&1 && break
    sleep 0.1
done

"$retouch" new "$work/demo" >/dev/null
file="$work/demo/workflows/layout-and-retouch.yaml"
log="$work/events.jsonl"
: >"$log"
XDG_STATE_HOME="$work/state" "$retouch" view "$file" --json --size 1400x900 --cache-dir "$work/cache" --out "$work/out" \
    >"$log" 2>"$work/errors" &
view=$!
ours+=("$view")

# Waits until the events have so many lines with a text.
await() {
    for _ in $(seq 600); do
        [ "$(grep -c -- "$1" "$log" || true)" -ge "$2" ] && return 0
        kill -0 "$view" 2>/dev/null || { cat "$work/errors" >&2; return 1; }
        sleep 0.1
    done
    echo "no $1 within a minute" >&2
    return 1
}
picture() {
    sleep 0.7
    import -window root "$folder/$1.png"
    echo "$folder/$1.png"
}
key() { xdotool key --clearmodifiers "$@"; }

await '"node_started"' 1
window="$(xdotool search --sync --onlyvisible --name 'Retouch' | head -1)"
xdotool windowfocus "$window" 2>/dev/null || true
picture 1-running
await '"run_finished"' 1
key g
picture 2-done

# Steps: the scrubber takes the pointer, then the keys.
key 2
sleep 1
xdotool mousemove 600 712 click 1
sleep 0.5
key Left Left Left
picture 2-steps

# An edit while the window is open: what it touches runs again.
sed -i 's/blend_steps: {type: steps, default: 20%/blend_steps: {type: steps, default: 24%/' "$file"
await '"node_resumed"' 1
picture 3-edited
await '"run_finished"' 2

# A broken edit is told, and the window stays.
sed -i 's/op: step_blend_sample/op: step_blend_sampel/' "$file"
await '"fault"' 1
key 4
picture 4-broken
sed -i 's/op: step_blend_sampel/op: step_blend_sample/' "$file"
await '"run_finished"' 3
key 1
picture 5-mended

# Idle, it takes nothing: less than a tick of a hundredth of a second every second.
ticks() { awk '{print $14 + $15}' "/proc/$view/stat"; }
sleep 2
before="$(ticks)"
sleep 5
after="$(ticks)"
echo "processor time in 5 s of idling: $(((after - before) * 10)) ms"

# Closed while a run goes on, the run comes to its end.
sed -i 's/seed:        {type: seed, default: 43}/seed:        {type: seed, default: 44}/' "$file"
await '"node_progress"' 1
runs="$(grep -c '"run_started"' "$log")"
await '"run_started"' "$runs"
sleep 0.5
key ctrl+q
wait "$view" || { echo "the program ended with $?" >&2; cat "$work/errors" >&2; exit 1; }
tail -1 "$log"
