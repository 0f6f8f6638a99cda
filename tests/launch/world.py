"""A checkout, and a world beside it in which `fake_cloud.py` stands in for Google Cloud."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# The metadata server's answer, and uv's installer.
CURL = """case $* in
    */attributes/agent-worker-number) echo "$FAKE_WORKER" ;;
    *https://astral.sh/uv/install.sh)
        echo 'mkdir -p ~/.local/bin && ln -s "$FAKE_CLOUD/bin/uv.hidden" ~/.local/bin/uv' ;;
    *) exit 6 ;;
esac"""


class Cloud:
    """A checkout, and a world of `fake_cloud.py` beside it; `variables` are set everywhere."""

    def __init__(self, folder: pathlib.Path, variables: dict | None = None, **plan):
        self.variables = variables or {}
        self.world, self.checkout = folder / "world", folder / "checkout"
        (self.world / "bin").mkdir(parents=True)
        # -S: a stand-in that is called fifty times must start quickly.
        fake = f"exec {sys.executable} -S {pathlib.Path(__file__).with_name('fake_cloud.py')}"
        for tool, code in {
            "gcloud": f'{fake} gcloud "$@"',
            "training": f'{fake} training "$@"',
            "uv.hidden": f'{fake} uv "$@"',
            "curl": CURL,
            "ssh-add": "",
            "sudo": "cat >/dev/null",
        }.items():
            (self.world / "bin" / tool).write_text(f"#!/usr/bin/env bash\n{code}\n")
            (self.world / "bin" / tool).chmod(0o755)
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        for name in ("deit_jax", "configs"):
            if "real" in plan:
                shutil.copytree(ROOT / name, self.checkout / name)
            else:
                (self.checkout / name).mkdir()
        for name in ("train.py", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.checkout)
        self.plan(**plan)

    def plan(self, **plan):
        (self.world / "plan.json").write_text(json.dumps({"runs": [{}], **plan}))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.world}/bin:/usr/bin:/bin",
            "HOME": str(self.world),
            "FAKE_CLOUD": str(self.world),
            "TPU_VM_POLL": "0.05",
            "TPU_VM_PAUSE": "0.05",
            "TPU_VM_UPLOAD": "0.1",
            **self.variables,
        }

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["scripts/tpu_vm.sh", *words],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *words: str, status: int = 0, timeout: float = 60) -> str:
        """What a command prints; it must end with this status."""
        process = self.start(*words)
        try:
            output = process.communicate(timeout=timeout)[0]
        finally:
            process.kill()
        assert process.returncode == status, output
        return output

    def calls(self, name: str = "gcloud") -> list[dict]:
        path = self.world / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["name"] == name]

    def verbs(self) -> list[str]:
        """The calls of gcloud that change something, in order."""
        found = []
        for call in self.calls():
            remote = call["flags"].get("--command", "")
            verb = call["command"].split()[-1]
            for word in ("poll", "start", "setup", "log"):
                if f"tpu_worker.sh {word}" in remote:
                    verb = word
            if verb not in ("describe", "poll", "log", "cp"):
                found.append(verb)
        return found

    def nodes(self) -> dict:
        return json.loads((self.world / "state.json").read_text())["nodes"]

    def processes(self) -> list[int]:
        """What runs on the workers."""
        mark, found = f"FAKE_CLOUD={self.world}".encode(), []
        for folder in pathlib.Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass
        return found

    def end(self):
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
