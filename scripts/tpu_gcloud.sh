# What scripts/tpu_vm.sh asks of gcloud, for the TPU VM `name` in `zone`, whose files are in `dir`:
# a node, or with kind=queued-resources a queued resource of one node or of several (`slices`).
# shellcheck shell=bash disable=SC2154

# ssh would read the standard input of the loop that it is called in.
tpus() { gcloud compute tpus "$1" "$2" "$3" --zone="$zone" --quiet "${@:4}" </dev/null 2>>"$dir/gcloud.log"; }
reason() { grep ERROR "$dir/gcloud.log" | tail -n 1 | grep . || tail -n 1 "$dir/gcloud.log"; }
nodes() { if [ "$slices" = 1 ]; then echo "$name"; else seq -f "$name-%.0f" 0 $((slices - 1)); fi; }

describe() { # KIND NAME FIELD: a state, ABSENT, or UNKNOWN and why
    : >"$dir/gcloud.log"
    tpus "$1" describe "$2" --format="value($3)" && return
    if grep -q NOT_FOUND "$dir/gcloud.log"; then echo ABSENT; else echo "UNKNOWN: $(reason)"; fi
}

state() { # READY, or what keeps it from that
    local state=ACTIVE node
    [ "$kind" = tpu-vm ] || state=$(describe "$kind" "$name" state.state)
    [ "$state" = ACTIVE ] && for node in $(nodes); do
        state=$(describe tpu-vm "$node" state)
        [ "$kind$state" = queued-resourcesABSENT ] && state=GONE
        [ "$state" = READY ] || break
    done
    echo "$state"
}

request() { # creates it, or asks for it
    local arguments=("--version=$image")
    [ "$kind" = tpu-vm ] || arguments=("--runtime-version=$image" "--node-id=$name")
    [ "$slices" = 1 ] || arguments=("--runtime-version=$image" "--node-count=$slices" "--node-prefix=$name")
    : >"$dir/gcloud.log"
    say "creating $name: $type in $zone, ${arguments[*]} $spot"
    tpus "$kind" create "$name" --accelerator-type="$type" "${arguments[@]}" ${spot:+"$spot"}
}

again() { # a gcloud command, five times; 64 is a failure of the command on the worker
    local try status
    for try in 1 2 3 4 5; do
        # On pods gcloud wants its key to be there.
        ssh-add "$HOME/.ssh/google_compute_engine" 2>>"$dir/gcloud.log"
        "$@"
        status=$?
        case $status in 0 | 64) return "$status" ;; esac
        say "gcloud ${*:2:3} failed ($try of 5): $(reason)"
        sleep "$pause"
    done
    return 255
}

delete() {
    local force=''
    [ "$(state)" = ABSENT ] && return
    [ "$kind" = tpu-vm ] || force=--force
    say "deleting $name"
    again tpus "$kind" delete "$name" ${force:+"$force"} || [ "$(state)" = ABSENT ] ||
        fail "$name is not deleted and costs money; try again: scripts/tpu_vm.sh delete $name" 1
}

poll() { # lines `NODE worker NUMBER ID STATE BYTES`
    local node
    for node in $(nodes); do
        tpus tpu-vm ssh "$node" --worker=all \
            --command="test -e $worker || { echo worker 0 - fresh 0; exit; }; bash $worker poll" |
            grep '^worker ' | sed "s/^/$node /" || return
    done
}
