#!/usr/bin/env bash
# Compare Cuvée with MergeKit 0.1.5 itself, tensor by tensor, over every recipe of this folder.
#
#   bash tests/parity/run.sh [NAME ...]     only recipes whose name contains one of the words
#
# MergeKit gets an environment of its own ($PARITY_ENV, default build/parity-env), because it is no dependency of
# Cuvée; $PYTHON makes it, $CUVEE_PYTHON runs Cuvée (default .venv/bin/python). Nothing is downloaded after that.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
environment=${PARITY_ENV:-$root/build/parity-env}
ours=${CUVEE_PYTHON:-$root/.venv/bin/python}
work=$root/build/parity

if ! "$environment/bin/python" -c 'import mergekit' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" torch
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" mergekit==0.1.5
fi

rm -rf "$work"
mkdir -p "$work"
cd "$here"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONHASHSEED=0 OMP_NUM_THREADS=1
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
"$ours" make_inputs.py "$work/inputs" 2>"$work/inputs.log" || { cat "$work/inputs.log" >&2; exit 1; }
(unset PYTHONPATH; "$environment/bin/python" run_theirs.py "$work/inputs" "$work/theirs" "$@" >"$work/theirs.log" 2>&1) ||
    { tail -50 "$work/theirs.log" >&2; exit 1; }
"$ours" run_ours.py "$work/inputs" "$work/ours" "$@" >"$work/ours.log" 2>&1 || { tail -50 "$work/ours.log" >&2; exit 1; }
"$ours" compare.py "$work/inputs" "$work/theirs" "$work/ours" "$@"
