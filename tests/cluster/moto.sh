#!/usr/bin/env bash
# Runs a command beside a server of S3's protocol that others wrote: moto's, on the loopback address, with an empty bucket `bucket`. The
# command finds its address in RETOUCH_TEST_S3; the suites `s3::` of retouch-cluster and `far::` then try that server too. Where there is
# no moto (`pip install "moto[server]"`; PYTHON names the interpreter) the command runs without, and this says so.
#
#   PYTHON=python3 tests/cluster/moto.sh cargo test -p retouch-cluster
set -euo pipefail
python="${PYTHON:-python3}"
if ! "$python" -c "import moto.server" 2>/dev/null; then
    echo "moto: skipped: $python has no moto; S3 is tried against the server of the tests alone"
    exec "$@"
fi
scratch="$(mktemp -d)"
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$python" -c "import sys; from moto.server import main; main(sys.argv[1:])" -H 127.0.0.1 -p "$port" >"$scratch/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
"$python" - "$port" <<'PY'
import sys, time, urllib.request
bucket = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/bucket", method="PUT")
for attempt in range(150):
    try:
        urllib.request.urlopen(bucket)
        break
    except OSError:
        time.sleep(0.2)
else:
    sys.exit("moto: the server does not come up")
PY
echo "moto: $("$python" -c 'from moto import __version__; print(__version__)') listens on port $port"
RETOUCH_TEST_S3="http://127.0.0.1:$port" "$@"
