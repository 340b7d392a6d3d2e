#!/usr/bin/env bash
# On a worker: starts a command, detached, in a process group of its own.
#
#   start.sh RUN COMMAND...
#
# Below ~/prompt_tuning_runs/RUN: log, pid, and exit_code once it has ended.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
name=$1
shift
folder=$HOME/prompt_tuning_runs/$name
mkdir -p "$folder"
for pid in "$HOME"/prompt_tuning_runs/*/pid; do
  if [[ -f $pid ]] && kill -0 -- "-$(cat "$pid")" 2> /dev/null; then
    echo "$(hostname): $(basename "$(dirname "$pid")") is running: one run at a time has the chips" \
      "(kill.sh stops it)" >&2
    exit 3
  fi
done
rm -f "$folder/exit_code"
export PATH=$HOME/prompt_tuning/.venv/bin:$PATH
cd "$HOME"
echo "--- $(date -u +%FT%TZ) $(hostname): $(printf '%q ' "$@")" >> "$folder/log"
# The group's leader outlives the command, to note how it ended.
# shellcheck disable=SC2016
setsid bash -c 'folder=$1; shift; trap "" TERM INT
  code=0; (trap - TERM INT; exec "$@") || code=$?; echo "$code" > "$folder/exit_code"' \
  start "$folder" "$@" >> "$folder/log" 2>&1 < /dev/null &
echo $! > "$folder/pid"
# What fails at once (a misspelt setting) is told at once.
sleep "${START_SECONDS:-5}"
if [[ -f $folder/exit_code && $(cat "$folder/exit_code") != 0 ]]; then
  echo "$(hostname): ended with $(cat "$folder/exit_code"):" >&2
  tail -n 20 "$folder/log" >&2
  exit 4
fi
echo "$(hostname): started $name"
