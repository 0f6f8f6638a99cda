"""Stands in for `gcloud`, for `uv` on a TPU VM and for training; not a test itself.

Its first argument says for which. The world is the folder $FAKE_CLOUD: a home folder per
worker, where commands really run, detached processes really stay and a preemption really
sends SIGTERM and then removes everything; a folder as bucket; `calls.jsonl` with every call;
and `plan.json`, which says what happens:

    workers     of each node (1)
    create      what each creation answers in turn: "" or an error
    describe    states that are answered in turn before what is true
    fail        how many calls of `ssh`, `scp` and `delete` fail first, by kind
    lives       for each creation in turn: `preempt` or `reboot` after so many polls; `hard` means
                without SIGTERM
    runs        for each start in turn, by worker ("0", or "all"): lines to `print`, the `status`
                to end with, or none to wait for SIGTERM and end with 75
    setup       how many installations fail
    real        an interpreter: train.py itself runs, instead of what `runs` says
"""

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

WORLD = pathlib.Path(os.environ["FAKE_CLOUD"])
FLAGS = pathlib.Path(__file__).resolve().parent.parent / "vectors/launch/gcloud_flags.json"


class State:
    """`plan.json` and `state.json`, held alone by one process at a time."""

    def __enter__(self):
        self.lock = open(WORLD / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.plan = json.loads((WORLD / "plan.json").read_text())
        path = WORLD / "state.json"
        self.data = json.loads(path.read_text()) if path.exists() else {}
        return self

    def __exit__(self, *_):
        (WORLD / "state.json").write_text(json.dumps(self.data))
        self.lock.close()

    def count(self, key):
        """How often this was called before."""
        self.data[key] = self.data.get(key, -1) + 1
        return self.data[key]

    def turn(self, key):
        """The next entry of a list of the plan."""
        entries = self.plan.get(key, [])
        number = self.count(key)
        return entries[number] if number < len(entries) else None


def record(name, **content):
    with open(WORLD / "calls.jsonl", "a") as file:
        file.write(json.dumps({"name": name, **content}) + "\n")


def error(command, message):
    print(f"ERROR: (gcloud.{command.replace(' ', '.')}) {message}", file=sys.stderr)
    return 1


def gcloud(argv):
    positional, flags = [], {}
    for word in argv:
        if word.startswith("--"):
            key, _, value = word.partition("=")
            flags[key] = value
        else:
            positional.append(word)
    length = 2 if argv[0] == "storage" else 4
    command, arguments = " ".join(positional[:length]), positional[length:]
    record("gcloud", command=command, arguments=arguments, flags=flags)
    known = json.loads(FLAGS.read_text())["flags"]
    if command not in known or set(flags) - set(known[command]):
        return error(command, f"unrecognized arguments: {argv}")
    if command == "storage cp":
        return copy(*arguments)
    kind, verb = positional[2:4]
    if verb in ("ssh", "scp"):
        return {"ssh": ssh, "scp": scp}[verb](command, arguments, flags)
    with State() as state:
        return {"create": create, "describe": describe, "delete": delete}[verb](
            state, command, kind, arguments[0], flags
        )


def create(state, command, kind, name, flags):
    if refused := state.turn("create"):
        return error(command, refused)
    nodes = state.data.setdefault("nodes", {})
    names = [flags.get("--node-id") or name]
    if count := flags.get("--node-count"):
        names = [f"{flags['--node-prefix']}-{number}" for number in range(int(count))]
    life = state.turn("lives") or {}
    if kind == "queued-resources":
        state.data["queued"] = {"name": name, "nodes": names}
    for node in names:
        nodes[node] = {"state": "READY", "polls": 0, **life}
        for worker in range(state.plan.get("workers", 1)):
            home = WORLD / "homes" / node / str(worker)
            home.mkdir(parents=True)
            (home / "boot_id").write_text("first\n")
    return 0


def describe(state, command, kind, name, flags):
    nodes, queued = state.data.get("nodes", {}), state.data.get("queued")
    there = queued if kind == "queued-resources" else name in nodes
    if not there:
        return error(command, f"NOT_FOUND: Resource '{name}' was not found")
    answer = state.turn("describe")
    if answer and answer.startswith("ERROR"):
        return error(command, answer)
    print(answer or ("ACTIVE" if kind == "queued-resources" else nodes[name]["state"]))
    return 0


def delete(state, command, kind, name, flags):
    if state.count("delete") < state.plan.get("fail", {}).get("delete", 0):
        return error(command, "UNAVAILABLE: try again later")
    if kind == "queued-resources":
        assert "--force" in flags, "a queued resource with nodes is deleted with --force only"
        names = state.data.pop("queued")["nodes"]
    else:
        names = [name]
    for node in names:
        if state.data["nodes"].pop(node, None) is None:
            return error(command, f"NOT_FOUND: Resource '{node}' was not found")
        remove(node)
    return 0


def processes(node):
    """Process ids of everything that runs on the workers of a node."""
    mark = f"HOME={WORLD}/homes/{node}/".encode()
    for folder in pathlib.Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                yield int(folder.name)
        except OSError:
            pass


def end(node, number):
    for pid in processes(node):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def remove(node):
    end(node, signal.SIGKILL)
    shutil.rmtree(WORLD / "homes" / node, ignore_errors=True)


def shut_down(state, node, life):
    """SIGTERM and SIGHUP to all processes, some time, and then the end."""
    if not life.get("hard"):
        end(node, signal.SIGTERM)
        end(node, signal.SIGHUP)
        limit = time.monotonic() + 30
        while list(processes(node)) and time.monotonic() < limit:
            time.sleep(0.02)
    if "reboot" in life:
        end(node, signal.SIGKILL)
        for home in (WORLD / "homes" / node).iterdir():
            (home / "boot_id").write_text("second\n")
        del life["reboot"]
    else:
        remove(node)
        state.data["nodes"][node]["state"] = "PREEMPTED"


def fails(command):
    with State() as state:
        return state.count(command) < state.plan.get("fail", {}).get(command.split()[-1], 0)


def event(node, remote):
    """A preemption or a reboot, if it is time; whether there was one."""
    with State() as state:
        life = state.data["nodes"][node]
        under_way = life.get("trains", 0) >= state.plan.get("workers", 1)
        life["polls"] += remote.endswith("poll") and under_way
        for kind in ("preempt", "reboot"):
            if kind in life and life["polls"] > life[kind]:
                shut_down(state, node, life)
                return True
        return False


def ssh(command, arguments, flags):
    """As the real one: retries are not shown, 255 is a connection that failed."""
    (node,) = arguments
    remote = flags["--command"]
    if fails(command) or event(node, remote):
        return error(command, "[/usr/bin/ssh] exited with return code [255].")
    sys.stdin.read()
    print(f"Using ssh batch size of 1. Attempting to SSH into {node}.", file=sys.stderr)
    children, chosen = [], flags["--worker"]
    for home in sorted((WORLD / "homes" / node).iterdir()):
        if chosen in ("all", home.name):
            environment = dict(os.environ, HOME=str(home), FAKE_WORKER=home.name, FAKE_NODE=node)
            environment["TPU_VM_BOOT_ID"] = str(home / "boot_id")
            child = subprocess.Popen(
                ["bash", "-c", remote],
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            children.append(child)
    statuses = []
    for child in children:
        statuses.append(child.wait())
        # The connection ends, and with it what has not left its session.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return next((status for status in statuses if status), 0)


def scp(command, arguments, flags):
    source, target = arguments
    node = target.removesuffix(":")
    if fails(command):
        return error(command, "[/usr/bin/scp] exited with return code [255].")
    for home in (WORLD / "homes" / node).iterdir():
        shutil.copy(source, home)
    return 0


def copy(source, target):
    """`gcloud storage cp`, with a folder as bucket."""
    local = lambda url: WORLD / "bucket" / url.removeprefix("gs://")
    if target.startswith("gs://"):
        local(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, local(target))
        return 0
    files = list(local(source).parent.glob(local(source).name))
    for file in files:
        shutil.copy(file, target)
    return 0 if files else error("storage cp", "The following URLs matched no objects or files")


def uv(argv):
    record("uv", arguments=argv, worker=os.environ["FAKE_WORKER"], node=os.environ["FAKE_NODE"])
    if argv[0] == "venv":
        path = pathlib.Path(argv[-1]) / "bin/python"
        path.parent.mkdir(parents=True)
        path.symlink_to(WORLD / "bin/training")  # whatever version it was asked for
        return 0
    with State() as state:
        failed = state.count("setup") < state.plan.get("setup", 0)
    print("error: Failed to fetch: libtpu" if failed else "Installed 80 packages")
    return int(failed)


def training(argv):
    """`python -u train.py ARGUMENTS`"""

    def stop(*_):
        print(f"stopped by signal after saving step {number}", flush=True)
        os._exit(75)

    if real := json.loads((WORLD / "plan.json").read_text()).get("real"):
        return real_training(real, argv)
    signal.signal(signal.SIGTERM, stop)
    worker, node = os.environ["FAKE_WORKER"], os.environ["FAKE_NODE"]
    with State() as state:
        number = state.count(f"start of {node} {worker}")
        run = state.plan["runs"][min(number, len(state.plan["runs"]) - 1)]
        run = run.get(worker, run.get("all", {}))
    record("training", arguments=argv, worker=worker, cwd=os.getcwd(), key=os.environ.get("KEY"))
    for line in run.get("print", [f"start {number} of worker {worker}"]):
        print(line, flush=True)
    trains()
    if "status" in run:
        return run["status"]
    while True:
        signal.pause()


def trains():
    """Says that this worker is under way; before all are, nothing happens to them."""
    with State() as state:
        node = state.data["nodes"][os.environ["FAKE_NODE"]]
        node["trains"] = node.get("trains", 0) + 1


def real_training(python, argv):
    """train.py itself; its bucket is whatever the variables say."""
    # The child gets the signal as well.
    signal.signal(signal.SIGTERM, lambda *_: None)
    command = [python, *argv]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    steps = 0
    for line in child.stdout:
        print(line, end="", flush=True)
        steps += line.startswith("step ")
        if steps == 1 and line.startswith("step "):
            trains()
    return child.wait()


def main():
    return {"gcloud": gcloud, "uv": uv, "training": training}[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
