#!/usr/bin/env bash
# On a worker: stops one run, or all of them and whatever else of this user's holds the chips.
#
#   stop.sh RUN | --all
#
# A run saves on SIGTERM. What is left after STOP_SECONDS (60) is killed.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
name=$1
[[ $name != --all ]] || name='*'

alive() { kill -0 -- "-$1" 2> /dev/null; }

# gone GROUP SECONDS: waits for its end.
gone() {
  local i
  for ((i = 0; i < 10 * $2; i++)); do
    alive "$1" || return 0
    sleep 0.1
  done
  return 1
}

# The name may be a pattern.
for file in "$HOME"/prompt_tuning_runs/$name/pid; do
  [[ -f $file ]] || continue
  group=$(cat "$file")
  run=$(basename "$(dirname "$file")")
  if ! alive "$group"; then
    echo "$(hostname): $run was not running"
    continue
  fi
  kill -TERM -- "-$group"
  if gone "$group" "${STOP_SECONDS:-60}"; then
    echo "$(hostname): $run stopped"
  else
    kill -KILL -- "-$group" 2> /dev/null || true
    gone "$group" 10 || { echo "$(hostname): $run cannot be killed" >&2; exit 1; }
    echo "$(hostname): $run killed"
  fi
done

if [[ $1 == --all ]]; then
  # Names of devices are matched by the shell.
  for device in ${CHIPS:-/dev/accel* /dev/vfio/[0-9]*}; do
    [[ -e $device ]] || continue
    for process in $(fuser "$device" 2> /dev/null || true); do
      kill -KILL "$process" 2> /dev/null && echo "$(hostname): killed $process, which held $device"
    done
  done
  lock=${LIBTPU_LOCK:-/tmp/libtpu_lockfile}
  rm -f "$lock" || echo "$(hostname): $lock is another user's" >&2
fi
