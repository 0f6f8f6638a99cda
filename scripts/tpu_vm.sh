#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod, and comes back after a preemption:
#
#     scripts/tpu_vm.sh create NAME --type=v5litepod-16 --zone=ZONE [--spot] [--queued] [--slices=2] [--image=IMAGE]
#     scripts/tpu_vm.sh setup NAME
#     scripts/tpu_vm.sh run NAME [--env=KEY=VALUE] --config=FILE --workdir=gs://BUCKET/RUN [--config.key=value ...]
#     scripts/tpu_vm.sh watch NAME
#     scripts/tpu_vm.sh logs NAME [WORKER]
#     scripts/tpu_vm.sh delete NAME
#
# `run` leaves a process on every worker that needs no connection. `watch` shows its stdout; when the TPU VM
# is gone it creates, sets up and runs again, after exit status 75 it runs again, at the end it deletes the
# TPU VM; after another status it stops and keeps it. Ctrl-C ends `watch`, not the run. --queued and --slices
# ask for a queued resource. What was asked for and all stdout are kept in runs/tpu_vm/NAME.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
command=${1-} name=${2-} dir=runs/tpu_vm/${2-}
pause=${TPU_VM_PAUSE:-5} worker=deit_jax/scripts/tpu_worker.sh seen=''
kept="$name is kept and costs money until: scripts/tpu_vm.sh delete $name"
gone='@(ABSENT|GONE|PREEMPTED|TERMINATED|STOPPED|SUSPENDED|FAILED)'
shopt -s extglob

. scripts/tpu_gcloud.sh
say() { echo "tpu_vm: $(date +%T) $1" >&2; }
fail() { say "$1" && exit "${2:-2}"; }
size() { if [ -e "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi; }

create() {
    local option
    type='' zone='' image='' slices=1 spot='' kind=tpu-vm
    for option; do
        case $option in
            --spot) spot=--spot ;;
            --queued) kind=queued-resources ;;
            --type=* | --zone=* | --image=* | --slices=[1-9]*)
                option=${option#--} && printf -v "${option%%=*}" %s "${option#*=}" ;;
            *) fail "unknown option $option; known: --type, --zone, --spot, --queued, --slices, --image" ;;
        esac
    done
    case $image$type in
        v[234]-*) image=tpu-ubuntu2204-base ;;
        v5litepod-*) image=v2-alpha-tpuv5-lite ;;
        v5p-*) image=v2-alpha-tpuv5 ;;
        v6e-*) image=v2-alpha-tpuv6e ;;
        *) [ "$image" ] || fail "unknown --type=$type; known: v2-8, v4-32, v5litepod-16, v5p-8, v6e-8; else give --image" ;;
    esac
    [ "$zone" ] || fail "--zone is missing, such as --zone=us-central2-b"
    [ "$slices" = 1 ] || kind=queued-resources
    mkdir -p "$dir/stdout" "$dir/bucket" && rm -f "$dir/arguments"
    for option in type zone image slices spot kind; do
        printf '%s=%q\n' "$option" "${!option}"
    done >"$dir/settings"
    request || fail "not created: $(reason)" 1
    say "next: scripts/tpu_vm.sh setup $name"
}

setup() { # 64 if it failed on a worker
    local node
    say "setting up $name: this checkout, Python 3.12, the library"
    for node in $(nodes); do
        again tpus tpu-vm scp "$dir/code.tar.gz" "$node:" --worker=all || return
        again tpus tpu-vm ssh "$node" --worker=all --command="cksum <code.tar.gz | grep -qx '$(cksum <"$dir/code.tar.gz")' \
&& mkdir -p deit_jax && tar -xzf code.tar.gz -C deit_jax && bash $worker setup" || return
    done
}

start() {
    local node id # a new one, also within a second: a worker ignores those that it has
    echo >>"$dir/starts" && id=$(date -u +%Y%m%dT%H%M%SZ)-$(size "$dir/starts")
    say "starting the run on all workers of $name"
    for node in $(nodes); do
        again tpus tpu-vm ssh "$node" --worker=all \
            --command="bash $worker start $id-$node $(cat "$dir/arguments")" || return
    done
}

add() { # PART LOG: `watch` shows the first worker's
    [[ $command$2 != watch*-"$(nodes | head -n 1)"-worker-0.log ]] || cat "$1"
    cat "$1" >>"$2"
}

fetch() { # a line of `poll`: the stdout that is not here yet
    local log=$dir/stdout/$4-worker-$3.log have
    have=$(size "$log")
    [ "$6" -gt "$have" ] || return 0
    tpus tpu-vm ssh "$1" --worker="$3" --command="bash $worker log $4 $have $(($6 - have))" >"$dir/part"
    # gcloud repeats a command whose connection breaks: the part then has another size.
    [ "$(size "$dir/part")" = $(($6 - have)) ] && add "$dir/part" "$log"
}

refresh() { # leaves the lines of `poll` in $lines
    local line
    lines=$(poll) && while read -r line; do
        # shellcheck disable=SC2086
        fetch $line || return
    done <<<"$lines"
}

from_bucket() { # the stdout that workers left there before they went
    local file log
    gcloud storage cp "$(cat "$dir/workdir")/stdout/*" "$dir/bucket/" 2>>"$dir/gcloud.log"
    for file in "$dir"/bucket/*.log; do
        log=$dir/stdout/${file##*/}
        [ "$(size "$file")" -gt "$(size "$log")" ] || continue
        tail -c "+$(($(size "$log") + 1))" "$file" >"$dir/part" && add "$dir/part" "$log"
    done
}

attend() { # looks after a TPU VM that is READY
    local before=$seen node number id status
    refresh || { say "not all workers answer: $(reason)" && return; }
    seen=$(awk '{print $5}' <<<"$lines" | sort -u | xargs)
    case " $seen " in
        *' fresh '*)
            setup && start && return
            [ $? != 64 ] || fail "setup failed; $kept" 1 ;;
        *' idle '* | *' rebooted '*) start ;;
        ' 0 ') say "the run is done" && delete && exit ;;
        ' running ' | ' 0 running ' | *' 75 running ') ;;
        "${before:+ $before }") # seen twice, for a machine that goes may answer once more when its partners have failed
            [[ $before =~ (^| )75 ]] && say "saved and stopped by SIGTERM (75)" && start && return
            read -r node _ number id status _ < <(awk '$5 !~ /^(0|running)$/' <<<"$lines")
            tail -n 20 "$dir/stdout/$id-worker-$number.log" >&2
            say "worker $number of $node ended with status $status, see above; then setup, run and watch again"
            fail "$kept" "${status/killed/1}" ;;
    esac
}

renew() { # replaces a TPU VM that is gone
    from_bucket
    delete
    request && return
    [[ $(reason) =~ PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED ]] && fail "cannot create $name: $(reason)" 1
    say "not created: $(reason)"
}

watch() {
    local now last=''
    [ -e "$dir/arguments" ] || fail "nothing to run on $name yet: scripts/tpu_vm.sh run $name --config=FILE ..."
    trap 'fail "no longer watching; the run continues; to watch it again: scripts/tpu_vm.sh watch $name" 130' INT
    while :; do
        now=$(state)
        [ "$now" = "$last" ] || say "$name is $now"
        last=$now
        # shellcheck disable=SC2254
        case $now in
            READY) attend ;;
            $gone) renew ;;
        esac
        sleep "${TPU_VM_POLL:-60}"
    done
}

pack() { # what a worker needs, as it is now; later ones get the same
    COPYFILE_DISABLE=1 tar -czf "$dir/code.tar.gz" --exclude=__pycache__ \
        deit_jax configs scripts ./*.py setup.cfg pyproject.toml README.md LICENSE || exit 1
}

run() {
    local argument workdir=''
    for argument; do
        case $argument in --workdir=gs://?*/?*) workdir=${argument#--workdir=} ;; esac
    done
    [ "$workdir" ] || fail "--workdir=gs://BUCKET/RUN is needed: the disk of a TPU VM goes when it does"
    echo "${workdir%/}" >"$dir/workdir"
    (umask 077 && printf '%q ' "$@" >"$dir/arguments")
    [ -e "$dir/code.tar.gz" ] || pack
    if [ "$(state)" = READY ] && refresh && [[ $lines != *' fresh '* ]]; then
        start || fail "not started on all workers: $(reason)" 1
        say "next: scripts/tpu_vm.sh watch $name"
    else
        say "$name is not set up yet; this sets it up and runs: scripts/tpu_vm.sh watch $name"
    fi
}

[[ $command =~ ^(create|setup|run|watch|logs|delete)$ && $name =~ ^[a-z][a-z0-9-]*$ ]] ||
    { sed -n '2,14s/^# \{0,1\}//p' scripts/tpu_vm.sh >&2 && exit 2; }
shift 2
if [ "$command" != create ]; then
    [ -e "$dir/settings" ] || fail "unknown TPU VM $name; known: $(cd runs/tpu_vm 2>/dev/null && echo *)"
    # shellcheck source=/dev/null
    . "$dir/settings"
fi
case $command in
    setup)
        pack
        until now=$(state) && [ "$now" = READY ]; do
            # shellcheck disable=SC2254
            case $now in $gone) fail "$name is $now; this creates it again: scripts/tpu_vm.sh watch $name" 1 ;; esac
            say "$name is $now; waiting" && sleep "${TPU_VM_POLL:-60}"
        done
        setup || fail "setup failed; $kept" 1
        say "next: scripts/tpu_vm.sh run $name --config=FILE --workdir=gs://BUCKET/RUN"
        ;;
    logs)
        refresh; from_bucket
        tail -n +1 "$dir"/stdout/*-worker-"${1:-0}".log 2>/dev/null || fail "no stdout of worker ${1:-0} yet" 1 ;;
    delete) refresh; delete ;;
    *) "$command" "$@" ;;
esac
