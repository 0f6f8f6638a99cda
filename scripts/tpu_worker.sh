#!/usr/bin/env bash
# What scripts/tpu_vm.sh runs on every worker of a TPU VM, in the home folder:
#
#     setup             installs the library, with Python 3.12, into deit_jax/.venv
#     start ID ARGS...  ends what still runs, then runs `train.py ARGS` detached from ssh
#     poll              prints `worker NUMBER ID STATE BYTES`; STATE is fresh (not installed), idle,
#                       running, an exit status, killed, or rebooted; BYTES is the size of stdout
#     log ID FROM SIZE  prints SIZE bytes of the stdout of ID from byte FROM on
#
# Exit status 64 is a failure that trying again does not mend; ssh itself has 255.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 64
pause=${TPU_VM_PAUSE:-5}
boot_id() { cat "${TPU_VM_BOOT_ID:-/proc/sys/kernel/random/boot_id}"; }
metadata() {
    curl -fsS --max-time 5 -H 'Metadata-Flavor: Google' \
        "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

number() { metadata agent-worker-number 2>/dev/null || echo 0; }

try() { # a command that needs the network, five times
    local attempt
    for attempt in 1 2 3 4 5; do
        "$@" && return
        echo "failed ($attempt of 5): $*"
        sleep "$pause"
    done
    return 1
}

# The images of Cloud TPU have Python 3.10. uv needs no apt, which is locked while a new VM updates itself.
install_uv() { curl -fsSL https://astral.sh/uv/install.sh | sh; }
install() {
    export PATH=$HOME/.local/bin:$PATH UV_HTTP_TIMEOUT=300
    command -v uv || try install_uv || return
    test -x .venv/bin/python || try uv venv --python 3.12 .venv || return
    try uv pip install --python .venv/bin/python -e '.[data,tpu,gcs]' || return
    # jax asks for it on v5e and later.
    echo always | sudo -n tee /sys/kernel/mm/transparent_hugepage/enabled
    touch .ready
}

setup() {
    if ! install >setup.log 2>&1; then
        echo "setup failed on worker $(number):"
        tail -n 15 setup.log
        exit 64
    fi
}

stop() { # a process that is left over would keep the TPU
    local group
    group=$(cat run/group 2>/dev/null) && [ "$(boot_id)" = "$(cat run/boot)" ] || return 0
    kill -TERM -- "-$group" 2>/dev/null
    for _ in {1..60}; do
        kill -0 -- "-$group" 2>/dev/null || return 0
        sleep "$pause"
    done
    kill -KILL -- "-$group" 2>/dev/null
    return 0
}

start() {
    local id=$1
    # ssh may have failed after it had started this one.
    test -e "run/$id" && exit
    stop
    mkdir -p "run/$id" || exit 64
    boot_id >run/boot
    rm -f run/group
    setsid bash scripts/tpu_worker.sh supervise "$@" </dev/null >/dev/null 2>&1 &
    # Until it has a session of its own it would end with this connection.
    until [ -e run/group ]; do sleep 0.1; done
    echo "$id" >run/id
}

supervise() { # writes the exit status when the run has ended
    local id=$1 bucket='' argument
    shift
    while [[ ${1-} == --env=* ]]; do
        export "${1#--env=}"
        shift
    done
    for argument; do
        case $argument in --workdir=gs://*) bucket=${argument#--workdir=} && bucket=${bucket%/} ;; esac
    done
    # At shutdown the run gets SIGTERM itself, and after it SIGHUP, which must not end it.
    trap : TERM
    trap '' HUP
    echo "$$" >run/group
    upload "$bucket" "$id" repeatedly &
    .venv/bin/python -u train.py "$@" >"run/$id/stdout" 2>&1
    echo "$?" >"run/$id/status.part"
    mv "run/$id/status.part" "run/$id/status"
    kill "$!"
    wait "$!"
    upload "$bucket" "$id"
}

upload() { # stdout beside the checkpoints, where it outlives the machine
    test "$1" || return
    # Put off while gcloud runs, so that no older upload comes after a newer one.
    trap exit TERM
    while gcloud storage cp "run/$2/stdout" "$1/stdout/$2-worker-$(number).log"; test "${3-}"; do
        sleep "${TPU_VM_UPLOAD:-60}" &
        wait "$!"
    done
}

poll() {
    local id state bytes=0
    id=$(cat run/id 2>/dev/null) || id=-
    if [ ! -e .ready ]; then
        state=fresh
    elif [ "$id" = - ]; then
        state=idle
    else
        bytes=$(wc -c 2>/dev/null <"run/$id/stdout") || bytes=0
        if [ -e "run/$id/status" ]; then
            state=$(cat "run/$id/status")
            bytes=$(wc -c <"run/$id/stdout")
        elif [ "$(boot_id)" != "$(cat run/boot)" ]; then
            state=rebooted
        elif kill -0 -- "-$(cat run/group)" 2>/dev/null; then
            state=running
        else
            state=killed
        fi
    fi
    echo "worker $(number) $id $state $((bytes))"
}

log() { tail -c "+$(($2 + 1))" "run/$1/stdout" | head -c "$3"; }

"$@"
