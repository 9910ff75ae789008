#!/bin/sh
# Labels the CTs of /workspace/inputs, CASE_0000.nii.gz, into /workspace/outputs, CASE.nii.gz, and
# checks the label maps as a submission. Options are passed on to `panorgan predict`.
# The exit code is 0 if every CT has a label map that can be submitted, else there is a line a
# problem.
set -u
cd "$(dirname "$0")" || exit

# What was compiled when the image was built; numba loads it from where it can write alone.
kernels=$(dirname "$(command -v panorgan)")/../kernels
if [ -d "$kernels" ] && kept=$(mktemp -d -p /dev/shm); then
    cp -r "$kernels/." "$kept"
    export NUMBA_CACHE_DIR="$kept"
    trap 'rm -r "$kept"' EXIT
fi

status=0
panorgan predict -i inputs -o outputs -m model "$@" || status=$?
panorgan check inputs --predictions outputs || status=$?
exit "$status"
