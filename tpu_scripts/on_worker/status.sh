#!/usr/bin/env bash
# On a worker: one line, whether a run is `running`, `ended CODE`, `killed` or `not started`.
#
#   status.sh RUN
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
folder=$HOME/prompt_tuning_runs/$1
if [[ ! -f $folder/pid ]]; then
  state='not started'
elif [[ -f $folder/exit_code ]]; then
  state="ended $(cat "$folder/exit_code")"
elif kill -0 -- "-$(cat "$folder/pid")" 2> /dev/null; then
  state=running
else
  # No exit code was left: the machine restarted, or the whole group was killed.
  state='ended 137'
fi
echo "$(hostname): $state"
