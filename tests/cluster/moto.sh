#!/usr/bin/env bash
# A sweep over a store that speaks S3's protocol: moto's server on the loopback address. Skips, and says so, where there is no moto
# (`pip install "moto[server]"`; PYTHON names the interpreter). The suite `far::` does the same with a server of its own.
#
#   PYTHON=python3 tests/cluster/moto.sh [PROGRAM]     # PROGRAM: target/debug/retouch
set -euo pipefail
cd "$(dirname "$0")/../.."
program="$(realpath "${1:-target/debug/retouch}")"
workflow="$(realpath workflows/vanilla.yaml)"
python="${PYTHON:-python3}"
skip() {
    echo "moto: skipped: $1"
    exit 0
}
[ -x "$program" ] || skip "there is no $program: cargo build"
"$python" -c "import moto.server" 2>/dev/null || skip "$python has no moto"
scratch="$(mktemp -d)"
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$python" -c "import sys; from moto.server import main; main(sys.argv[1:])" -H 127.0.0.1 -p "$port" >"$scratch/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; rm -rf "$scratch"' EXIT
export AWS_ACCESS_KEY_ID=AKIASECRETOFTESTS AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI-of-tests AWS_REGION=us-east-1
export AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_ALLOW_HTTP=true RETOUCH_CONFIG="" NO_COLOR=1
for _ in $(seq 100); do
    "$python" - <<PY 2>/dev/null && break
import urllib.request
urllib.request.urlopen(urllib.request.Request("$AWS_ENDPOINT_URL/lab", method="PUT"))
PY
    sleep 0.2
done
sweep=(sweep "$workflow" --set steps=3 --over guidance=3,4 --over "seed=1..7" --sheet sheet.png --no-cache)
cd "$scratch"
"$program" "${sweep[@]}" --out one --quiet >/dev/null
"$program" "${sweep[@]}" --out two --on local --workers 2 --store s3://lab/runs >said 2>&1
"$program" sweep status last --store s3://lab/runs >>said
files() { (cd "$1" && find . -type f ! -path '*/.*' -print0 | sort -z | xargs -0 sha256sum); }
cmp <(files one) <(files two)
if grep -rqE "$AWS_ACCESS_KEY_ID|$AWS_SECRET_ACCESS_KEY" one two said; then
    echo "moto: a key was written" >&2
    exit 1
fi
echo "moto: passed: 12 cells by two workers over S3 are the bytes of one machine"
