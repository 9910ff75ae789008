#!/bin/sh
# Labels the CTs of /workspace/inputs, CASE_0000.nii.gz, into /workspace/outputs, CASE.nii.gz, and
# checks the label maps as a submission. Options are passed on to `panorgan predict`.
# The exit code is 0 if every CT has a label map that can be submitted, else there is a line a
# problem.
set -u
cd "$(dirname "$0")" || exit

status=0
panorgan predict -i inputs -o outputs -m model "$@" || status=$?
panorgan check inputs --predictions outputs || status=$?
exit "$status"
