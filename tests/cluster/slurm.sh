#!/usr/bin/env bash
# A sweep on a real Slurm: two nodes on this machine, everything of it in a scratch folder. Skips, and says so, where apt cannot
# install Slurm. `.ci/run` runs it last.
#
#   tests/cluster/slurm.sh [PROGRAM]                        # PROGRAM: target/debug/retouch
#   RETOUCH_SLURM=full tests/cluster/slurm.sh [PROGRAM]     # all of it, 2 to 3 minutes
#
# What it shows: 24 cells on two nodes are the bytes of one machine, also with a worker killed; in full a task requeued, a node drained,
# a slurmd killed and the submitting process gone too. Nothing is lost, and at most the chunk of each lost worker is begun twice.
set -euo pipefail
cd "$(dirname "$0")/../.."
program="$(realpath "${1:-target/debug/retouch}")"
workflow="$(realpath workflows/vanilla.yaml)"

skip() {
    echo "slurm: skipped: $1"
    exit 0
}
[ "$(uname -s)" = Linux ] || skip "no Linux"
[ "$(id -u)" -eq 0 ] || skip "slurmd and munged run as root here"
[ -x "$program" ] || skip "there is no $program: cargo build"
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    command -v apt-get >/dev/null || skip "neither Slurm nor apt"
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null \
        || skip "apt cannot install Slurm"
fi

scratch="$(mktemp -d)"
# Before anything asks Slurm: `end` cancels all jobs that it sees.
export SLURM_CONF="$scratch/slurm.conf"
pids=()
end() {
    squeue -h -o %A 2>/dev/null | sort -u | xargs -r scancel 2>/dev/null || true
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap end EXIT
mkdir -p "$scratch"/{state,spool-n1,spool-n2,log,munge}
chmod 700 "$scratch/munge"
dd if=/dev/urandom of="$scratch/munge/key" bs=1024 count=1 status=none
chmod 600 "$scratch/munge/key"
host="$(hostname -s)"
cat >"$scratch/slurm.conf" <<CONF
ClusterName=scratch
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket=$scratch/munge/socket,cred_expire=10
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool-%n
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd-%n.pid
SlurmctldLogFile=$scratch/log/slurmctld
SlurmdLogFile=$scratch/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MessageTimeout=5
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=$host Port=16818 CPUs=1 RealMemory=500
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=$host Port=16819 CPUs=1 RealMemory=500
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF

start_slurmd() {
    slurmd -D -N "$1" >"$scratch/log/out-$1" 2>&1 &
    pids+=($!)
    eval "slurmd_$1=$!"
    disown
}
munged --foreground --force --key-file="$scratch/munge/key" --socket="$scratch/munge/socket" \
    --pid-file="$scratch/munge/pid" --log-file="$scratch/munge/log" --seed-file="$scratch/munge/seed" 2>"$scratch/log/munged" &
pids+=($!)
disown
for _ in $(seq 50); do [ -S "$scratch/munge/socket" ] && break; sleep 0.1; done
slurmctld -D >"$scratch/log/out-ctld" 2>&1 &
pids+=($!)
disown
start_slurmd n1
start_slurmd n2
up() { [ "$(sinfo -h -o '%T' -n "$1" 2>/dev/null)" = idle ]; }
for _ in $(seq 100); do up n1 && up n2 && break; sleep 0.2; done
if ! { up n1 && up n2; }; then
    tail -n 20 "$scratch"/log/* >&2
    skip "the two nodes do not come up here"
fi
echo "slurm: $(sinfo --version), two nodes are up"

export RETOUCH_CONFIG="" NO_COLOR=1
sweep=(sweep "$workflow" --set steps=6 --over guidance=3,4 --over "seed=1..13" --sheet sheet.png)
cd "$scratch"
"$program" "${sweep[@]}" --out one --no-cache --quiet >/dev/null
files() { (cd "$1" && find . -type f ! -path '*/.*' -print0 | sort -z | xargs -0 sha256sum); }
files one >one.sums
cells=24

# The run is over when all cells are done, whatever became of single jobs.
finished() {
    for _ in $(seq 900); do
        "$program" sweep status --out "$1" --json >status.json || true
        grep -q "\"done\":$cells" status.json && return 0
        sleep 0.2
    done
    "$program" sweep status --out "$1" >&2
    tail -n 20 "$1"/.retouch-store/runs/*/slurm/*.log "$scratch"/log/* >&2 || true
    return 1
}
# How often a chunk was begun: once each, and once more for each worker that was lost.
attempts() { find "$1"/.retouch-store/runs/*/logs -name '*.jsonl' | wc -l; }
chunks=8
calls() { grep -ho '"unet_calls":[0-9]*,"cells"' "$1"/.retouch-store/runs/*/state/*/done.* | grep -o '[0-9]*' | awk '{ sum += $1 } END { print sum }'; }
# same FOLDER WHAT LOST: `LOST` workers lost what they had.
same() {
    local begun made
    "$program" sweep collect --out "$1" --quiet >/dev/null
    files "$1" >"$1.sums"
    begun="$(attempts "$1")" made="$(calls "$1")"
    if ! cmp one.sums "$1.sums" || [ "$begun" -gt $((chunks + $3)) ] || [ "$made" -gt 288 ]; then
        echo "slurm: $2: failed: $begun chunks begun of $chunks, $made U-Net calls of 288" >&2
        return 1
    fi
    echo "slurm: $2: the bytes of one machine; $begun chunks begun of $chunks; $made U-Net calls in those that were finished, 288 on one machine"
}
# A short term where a worker is to be lost; elsewhere one that a machine that stalls keeps to.
expiry=60
submit() { "$program" "${sweep[@]}" --on slurm --workers 2 --out "$1" --no-cache --quiet --expiry "$expiry" "${@:2}"; }
job() { squeue -h -o %A | sort -u | head -n 1; }
# Waits until a worker has begun a chunk after its first.
drawing() {
    for _ in $(seq 1200); do
        compgen -G "$1/.retouch-store/runs/*/state/*/done.*" >/dev/null && return 0
        sleep 0.1
    done
    return 1
}

submit plain
finished plain
same plain "two nodes" 0

expiry=15
submit killed
drawing killed
kill -9 "$(grep -ho '"pid":[0-9]*' killed/.retouch-store/runs/*/workers/*.json | head -n 1 | cut -d: -f2)" || echo "slurm: the worker had ended already"
finished killed
same killed "a worker killed" 1

if [ "${RETOUCH_SLURM:-}" != full ]; then
    echo "slurm: passed; RETOUCH_SLURM=full tries a task requeued, a node drained, a slurmd killed, the submitting process gone"
    exit 0
fi

submit requeued
drawing requeued
scontrol requeue "$(squeue -h -t running -o %A | tail -n 1)"
finished requeued
same requeued "a task requeued" 2

submit drained
drawing drained
scontrol update NodeName=n2 State=DRAIN Reason=test
finished drained
scontrol update NodeName=n2 State=RESUME
same drained "a node drained" 0

submit node
drawing node
kill -9 "$slurmd_n2"
finished node
same node "a slurmd killed" 1
start_slurmd n2
for _ in $(seq 100); do up n2 && break; sleep 0.2; done

# The submitting process is over before the first cell; its session may be too.
setsid "$program" "${sweep[@]}" --on slurm --workers 2 --out gone --no-cache --quiet --expiry 5 --collect </dev/null
finished gone
for _ in $(seq 300); do [ -z "$(job)" ] && break; sleep 0.2; done
files gone >gone.sums
cmp one.sums gone.sums && echo "slurm: the submitting process gone: a job collected the bytes of one machine"
echo "slurm: passed"
