#!/usr/bin/env bash
# Runs the tests with the versions that people have: `make matrix`, or
#   scripts/matrix.sh [colab|newest-3.11|newest-3.13|lowest ...] [-- pytest arguments]
# Each environment is made with uv, once, in .matrix/. Ends with a line for each; 0 if all pass.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

PINS=tests/constraints/colab.txt
EXTRAS='.[data,quickstart,test]'
# What depends on other packages, and whole runs; not what is arithmetic or text alone. Of the
# long tests those that are marked `versions`: the notebook, and training from the wheel.
TESTS=(-m "not long or versions" tests/checkpoint/manager_test.py tests/data/decode_test.py
       tests/data/pipeline_test.py tests/data/source_test.py tests/evaluation tests/figures
       tests/losses_test.py tests/models/deit_test.py tests/models/regnet_test.py
       tests/models/registry_test.py tests/notebook_test.py tests/optim/optimizers_test.py
       tests/pretrained/convert_test.py tests/pretrained/formats_test.py tests/runs/loop_test.py
       tests/storage/files_test.py tests/tracking tests/train tests/wheel_test.py)
# pyenv's own commands answer for one version only; uv finds what is in the path.
for bin in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin; do PATH="$PATH:$bin"; done

# Prints what is not installed in the version that the file of pins gives.
moved() {
  uv pip freeze --python "$1" | tr 'A-Z_' 'a-z-' | sort > "$1.frozen"
  grep '==' "$PINS" | tr 'A-Z_' 'a-z-' | sort | comm -23 - "$1.frozen"
}

make_environment() {
  local name=$1 at=.matrix/$1
  local install=(uv pip install --quiet --python "$at" --editable "$EXTRAS")
  case $name in
    colab) uv venv --quiet --seed --clear --python 3.13 "$at" &&
      uv pip install --quiet --python "$at" -r "$PINS" && "${install[@]}" -c "$PINS" || return 1
      [ -z "$(moved "$at")" ] || { echo "pins that were replaced: $(moved "$at")"; return 1; } ;;
    newest-*) uv venv --quiet --seed --clear --python "${name#newest-}" "$at" && "${install[@]}" ;;
    lowest) uv venv --quiet --seed --clear --python 3.11 "$at" &&
      "${install[@]}" --resolution=lowest-direct -c tests/constraints/lowest.txt ;;
    *) echo "unknown environment $name; known: colab, newest-3.11, newest-3.13, lowest"; return 1 ;;
  esac
}

versions() {
  "$1/bin/python" - <<'PYTHON'
import importlib.metadata, platform
names = ("jax", "flax", "orbax-checkpoint", "optax", "numpy", "tensorflow")
found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
print(f"Python {platform.python_version()}, {found}")
PYTHON
}

names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do names+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#names[@]} -gt 0 ] || names=(colab newest-3.11 newest-3.13 lowest)
[ $# -gt 0 ] && TESTS=("$@")

summary=() status=0
for name in "${names[@]}"; do
  at=.matrix/$name
  if ! { [ -e "$at/.ready" ] && [ "$at/.ready" -nt setup.cfg ] && [ "$at/.ready" -nt "$PINS" ]; }; then
    echo "$name: making .matrix/$name"
    if ! { make_environment "$name" && touch "$at/.ready"; }; then
      summary+=("$name: FAILED to install") status=1
      continue
    fi
  fi
  echo "$name: $(versions "$at")"
  if last=$("$at/bin/python" -m pytest -q -n "${JOBS:-auto}" --maxprocesses 8 --dist worksteal \
      "${TESTS[@]}" 2>&1 | tee "$at/tests.log" | tail -n 1); then
    summary+=("$name: $last; $(versions "$at")")
  else
    status=1
    grep -E '^(FAILED|ERROR)' "$at/tests.log"
    summary+=("$name: FAILED: $last, see $at/tests.log; $(versions "$at")")
  fi
done
printf '%s\n' "${summary[@]}"
exit $status
